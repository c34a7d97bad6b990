"""The package: its version, its marker for type checkers, and its layers."""

from importlib import metadata, resources
from pathlib import Path

import pmjax

ROOT = Path(__file__).resolve().parents[2]


def test_the_installed_version_is_the_one_that_the_package_states():
    assert metadata.version("pmjax") == pmjax.__version__


def test_the_version_is_stated_once_and_the_citation_agrees():
    assert f'"{pmjax.__version__}"' not in (ROOT / "setup.py").read_text()
    assert f"version = {{{pmjax.__version__}}}" in (ROOT / "README.md").read_text()
    assert f"## [{pmjax.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_type_checkers_find_the_annotations():
    assert resources.files("pmjax").joinpath("py.typed").is_file()
    assert "py.typed" in (ROOT / "setup.py").read_text()


def test_at_most_16_modules_are_directly_in_the_package():
    assert len(list((ROOT / "pmjax").glob("*.py"))) <= 16


def test_every_room_has_a_readme_of_at_most_a_page():
    rooms = [file.parent for file in (ROOT / "pmjax").glob("*/__init__.py")]
    rooms += [ROOT / name for name in ("configs", "launch", "tests")]
    assert len(rooms) >= 14
    for room in rooms:
        assert len((room / "README.md").read_text().splitlines()) <= 100, room
