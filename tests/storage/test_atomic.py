import errno
import os

import pytest

from pmjax.errors import UserError
from pmjax.storage import atomic
from pmjax.storage.resource_errors import NoSpace
from tests.readme_example import import_example


def test_text_and_bytes_are_written_and_folders_made(tmp_path):
    path = tmp_path / "new" / "a.txt"
    atomic.write(path, "größer")
    assert path.read_text(encoding="utf-8") == "größer"
    atomic.write(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["replace", "write"])
def test_a_full_disk_leaves_the_earlier_file_intact(tmp_path, monkeypatch, call):
    path = tmp_path / "a.txt"
    atomic.write(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    if call == "replace":
        monkeypatch.setattr(os, "replace", full)
    else:
        monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(NoSpace, match="for a.txt in .* MB are free there. The rest is intact."):
        atomic.write(path, "new", still_intact="The rest is intact.")
    assert path.read_text() == "old"


def test_readme_example(tmp_path, monkeypatch):
    notes = import_example("pmjax.storage", tmp_path, monkeypatch)
    assert notes.read(tmp_path) == []
    notes.write(tmp_path, ["first"])
    notes.write(tmp_path, ["first", "second"])
    assert notes.read(tmp_path) == ["first", "second"]
    (tmp_path / notes.FILE).write_text('["fir')
    with pytest.raises(UserError, match="notes.json is damaged"):
        notes.read(tmp_path)
