"""Imports the example of a room's README as if its file were in the room."""

import importlib
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"```python\n(# file: (\w+)\.py\n.*?)```", re.DOTALL)


def import_example(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, readme: str | None = None
) -> ModuleType:
    """Writes the README's block that starts with '# file: NAME.py' to a file and imports it.

    Args:
        package: whose folder the file seems to be in, such as 'pmjax.datasets'.
        tmp_path: where the file is written.
        monkeypatch: undoes everything after the test.
        readme: path of the README in the repository, if it is not the package's.
    """
    file = ROOT / (readme or f"{package.replace('.', '/')}/README.md")
    block = BLOCK.search(file.read_text(encoding="utf-8"))
    assert block, f"{file} has no block that starts with '# file: NAME.py'"
    content, name = block.groups()
    (tmp_path / f"{name}.py").write_text(content, encoding="utf-8")
    room = importlib.import_module(package)
    monkeypatch.setattr(room, "__path__", [*room.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    monkeypatch.setitem(sys.modules, f"{package}.{name}", None)  # so that undoing removes it
    del sys.modules[f"{package}.{name}"]
    module = importlib.import_module(f"{package}.{name}")
    monkeypatch.setattr(room, name, module, raising=False)
    return module
