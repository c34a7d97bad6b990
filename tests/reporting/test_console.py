import contextlib
import io
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tqdm import tqdm

from pmjax.errors import UserError
from pmjax.reporting import console
from pmjax.reporting.progress import progress
from pmjax.reporting.run_log import RunLog

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


def broken_pipe():
    """Returns a pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return os.fdopen(writer, "w")


def lost_terminal():
    """Returns a terminal that has gone: writing fails with EIO."""
    master, slave = os.openpty()
    stream = os.fdopen(slave, "w")
    os.close(master)
    return stream


def full_disk():
    """Returns a file on a full disk."""
    return open("/dev/full", "w")


def closed():
    """Returns a closed stream."""
    stream = io.StringIO()
    stream.close()
    return stream


def nothing():
    """Returns what Python has for a stream that was closed when it started."""


LOST = [broken_pipe, lost_terminal, full_disk, closed, nothing]


@contextlib.contextmanager
def installed(monkeypatch, name, make):
    """Replaces stdout or stderr by a stream that cannot be written."""
    stream = make()
    with monkeypatch.context() as patch:
        patch.setattr(sys, name, stream)
        yield
    if stream is not None:
        with contextlib.suppress(OSError):
            stream.close()


@pytest.mark.parametrize("make", LOST)
def test_a_run_goes_on_when_nobody_reads_it(make, tmp_path, monkeypatch, capfd):
    with installed(monkeypatch, "stderr", make), console.steady_output():
        console.setup()
        run_log = RunLog(tmp_path)
        log.warning("low disk")
        with progress("decoding", 2) as bar:
            bar.refresh()
        run_log.scalars("stage1", 1, {"loss": 1.0})
        run_log.status("stage1", 1, 2, {})
        run_log.status("stage1", 2, 2, {})
        run_log.close()
    assert "loss" in (tmp_path / "history.jsonl").read_text()
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("name", ["stdout", "stderr"])
@pytest.mark.parametrize("make", LOST)
def test_a_command_whose_output_is_lost_reaches_its_end(make, name, monkeypatch):
    reached = []

    def command():
        print("a result", flush=True)
        print("a line", file=sys.stderr, flush=True)
        reached.append("the end")

    status: int | str | None = 0
    with installed(monkeypatch, name, make):
        try:
            with console.steady_output():
                command()
        except SystemExit as end:
            status = end.code
        except UserError as error:
            status = str(error)
    assert reached == ["the end"]
    if name == "stderr" or make is nothing:
        assert status == 0
    elif make is broken_pipe:
        assert status == 128 + signal.SIGPIPE
    else:
        assert "could not be written" in status


def test_a_file_that_is_opened_does_not_become_a_closed_stderr():
    code = (
        "from pmjax.reporting import console\n"
        "with console.steady_output(): print(open('/dev/null').fileno())"
    )
    done = subprocess.run(
        f'"$PYTHON" -c "{code}" <&- 2>&-', shell=True, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHON": sys.executable},
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("3\n", 0)


ODD = os.fsdecode(b"a\xff\x1b[31m\nb\r\xc2\x9b.png")
SHOWN = r"a\udcff\x1b[31m\nb\r\x9b.png"


@pytest.mark.parametrize("name", [ODD, Path(ODD)])
def test_odd_file_names_are_escaped_in_log_lines(name, tmp_path):
    stream = io.TextIOWrapper(buffer := io.BytesIO(), encoding="ascii")
    console.setup(stream)
    log.warning("cannot read %s", name)
    log.warning(f"cannot read {name}")  # where the message may have line breaks of its own
    console.log_to_file(tmp_path / "log")
    log.warning("cannot read %s", name)
    first, *second = buffer.getvalue().decode("ascii").splitlines()
    assert first == f"Warning: cannot read {SHOWN}"
    assert r"\n".join(second) == first
    assert (tmp_path / "log").read_text().endswith(f" {first}\n")


def test_values_are_printed_in_every_encoding(monkeypatch):
    stream = io.TextIOWrapper(buffer := io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with console.steady_output():
        print("µ \x1b[31m\udcff ±\n2")
    assert buffer.getvalue() == b"\\xb5 \\x1b[31m\\udcff \\xb1\n2\n"
