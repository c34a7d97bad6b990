import io
import logging
import sys

import pytest
from tqdm import tqdm

from pmjax.errors import UserError
from pmjax.reporting import console

log = logging.getLogger("pmjax.training.loop")


def test_lines_are_plain_and_warnings_are_marked():
    stream = io.StringIO()
    console.setup(stream)
    log.debug("not shown")
    log.info("100%% of %d steps", 7)
    log.warning("low %s", "disk")
    assert stream.getvalue() == "100% of 7 steps\nWarning: low disk\n"


def test_a_module_that_is_run_as_a_command_is_shown():
    stream = io.StringIO()
    console.setup(stream)
    logging.getLogger("__main__").info("done")
    assert stream.getvalue() == "done\n"


def test_only_errors_of_other_packages_are_shown():
    stream = io.StringIO()
    console.setup(stream)
    for name in ("", "jax"):
        logging.getLogger(name).warning("not shown")
        logging.getLogger(name).error("broken")
    assert stream.getvalue() == "Error: broken\n" * 2


def test_setting_up_again_replaces_the_handler(monkeypatch):
    first = io.StringIO()
    console.setup(first)
    console.setup()
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # the stream of the moment is written to
    log.info("once")
    assert (first.getvalue(), sys.stderr.getvalue()) == ("", "once\n")


def test_a_progress_bar_is_put_back_below_a_line():
    stream = io.StringIO()
    console.setup(stream)
    bar = tqdm(total=3, file=stream, bar_format="{n}/{total}", ascii=True)
    log.info("saved\nand well")
    bar.close()
    drawn = stream.getvalue()
    assert "\rsaved\nand well\n\r0/3" in drawn


def test_a_file_has_all_lines_with_their_time_and_the_console_none(tmp_path, capsys):
    path = tmp_path / "logs" / "host-1.log"
    console.setup()
    for line in ("first", "second"):
        console.log_to_file(path)
        log.info(line)
    lines = path.read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == ["first", "second"]
    assert capsys.readouterr().err == ""


def test_a_file_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "logs").write_text("")
    with pytest.raises(UserError, match="logs/host-1.log cannot be written"):
        console.log_to_file(tmp_path / "logs" / "host-1.log")


def test_a_full_disk_is_reported_once_and_the_run_continues(tmp_path, capfd):
    path = tmp_path / "host-1.log"
    path.symlink_to("/dev/full")
    console.log_to_file(path)
    for _ in range(3):
        log.info("a line")
    console.setup()  # closes the file, whose last lines are not on disk
    said = capfd.readouterr().err
    assert said == f"{path} cannot be written ([Errno 28] No space left on device).\n"
