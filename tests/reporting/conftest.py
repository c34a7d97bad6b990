import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def logging_restored() -> Iterator[None]:
    """Restores the handlers and levels of logging after each test."""
    root, package = logging.getLogger(), logging.getLogger("pmjax")
    before, levels = root.handlers[:], (root.level, package.level)
    yield
    root.handlers[:] = before
    root.setLevel(levels[0])
    package.setLevel(levels[1])
