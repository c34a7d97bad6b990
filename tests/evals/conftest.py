"""Log lines of pmjax reach `caplog` in every test of this room."""

import logging

import pytest


@pytest.fixture(autouse=True)
def log_lines(caplog):
    caplog.set_level(logging.INFO, logger="pmjax")
