"""The README of the training room: its line numbers are right, and its example runs."""

import re

import pytest

from tests.readme_example import ROOT, import_example

README = (ROOT / "pmjax" / "training" / "README.md").read_text(encoding="utf-8")
HOPS = re.findall(r"`([\w/]+\.py):(\d+)` `([^`]+)`", README)  # file, line, code that is only there


def lines_with(file, code):
    lines = (ROOT / "pmjax" / file).read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if code in line]


@pytest.mark.parametrize(("file", "number", "code"), HOPS)
def test_a_hop_of_the_batch_is_at_its_line(file, number, code):
    found = lines_with(file, code)
    assert [int(number)] == found, f"README.md says {file}:{number} for `{code}`; it is {found}"


def test_a_batch_passes_four_files():
    files = list(dict.fromkeys(file for file, *_ in HOPS))
    assert files == ["training/loop.py", "training/step.py", "methods/pm.py", "nets/resnet.py"]


def test_readme_example(tmp_path, monkeypatch):
    example = import_example("pmjax.training", tmp_path, monkeypatch)
    state = example.train_two_steps(tmp_path / "run")
    assert int(state.step) == 2
    assert (tmp_path / "run" / "checkpoints" / "stage1" / "2").is_dir()
