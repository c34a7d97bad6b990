"""What the README names is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_every_fault_has_the_tests_that_are_named_for_it():
    table = README.split("## What happens when")[1].split("\n\n")[2]
    rows = [row for row in table.splitlines()[2:] if row]
    for row in rows:
        named = re.findall(r"`(\w+)::(\w+)`", row)
        assert named, row
        for file, name in named:
            assert (
                f"\ndef test_{name}(" in next((ROOT / "tests").rglob(f"test_{file}.py")).read_text()
            ), name


@pytest.mark.parametrize("pattern", [r"configs/\w+\.py", r"launch/[\w/]+\.\w+"])
def test_every_file_that_is_named_exists(pattern):
    named = set(re.findall(rf"(?<![\w/]){pattern}", README))
    assert named
    assert not [name for name in named if not (ROOT / name).is_file()]


def test_every_command_that_is_named_exists():
    named = set(re.findall(r"python -m (pmjax\.\w+)", README))
    assert "pmjax.main" in named
    assert not [m for m in named if not (ROOT / m.replace(".", "/")).with_suffix(".py").is_file()]
