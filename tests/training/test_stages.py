"""The stages' options come from their groups of the config; functions of the room are short."""

import ast

import pytest

from pmjax import config
from pmjax.training import stages
from tests.small_run import ROOT

MODULES = sorted((ROOT / "pmjax" / "training").glob("*.py"))


def test_each_stage_takes_its_own_group_of_the_config():
    overrides = {
        "steps": "7",
        "data.batch_size": "8",
        "profile": "3:2",
        "stage2.steps": "9",
        "stage2.batch_size": "16",
        "stage2.steps_per_dispatch": "4",
        "skip_nonfinite": "5",
        "data.device_budget_gb": "2",
    }
    settings = config.load(str(ROOT / "configs" / "digits.py"), overrides)
    first, second = stages.stage1_options(settings), stages.stage2_options(settings)
    assert (first.stage, first.steps, first.batch_size, first.profile) == ("stage1", 7, 8, (3, 2))
    assert (second.stage, second.steps, second.batch_size) == ("stage2", 9, 16)
    assert (second.steps_per_dispatch, second.profile) == (4, None)
    for options in (first, second):
        assert (options.skip_nonfinite, options.device_budget) == (5, 2e9)
    assert stages.stage2_options(settings, "realnvp").stage == "realnvp"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_function_has_more_than_100_lines(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 100, f"{path.name}: {node.name}"
