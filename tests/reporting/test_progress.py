import fcntl
import io
import logging
import os
import re
import struct
import termios

import pytest

from pmjax.reporting import console
from pmjax.reporting.run_log import RunLog


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Terminal:
    """A real pseudo-terminal of a given width."""

    def __init__(self, columns):
        self._master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self.stream = os.fdopen(slave, "w")

    def _read(self):
        try:
            return os.read(self._master, 1 << 16)
        except OSError:  # Linux's word for the end of what a closed terminal held
            return b""

    def rows(self):
        """Returns all that was written by line: what carriage returns left, and what was drawn."""
        self.stream.close()
        text = b""
        while part := self._read():
            text += part
        text = text.decode().replace("\r\n", "\n")
        drawn, shown = [], []
        for line in text.split("\n"):
            cells = ""
            for part in line.split("\r"):
                drawn.append(part)
                cells = part + cells[len(part) :]
            shown.append(cells.rstrip())
        return shown, drawn


def test_a_status_line_says_stage_steps_rate_eta_and_losses(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = RunLog(tmp_path, stream=stream, clock=clock)
    writer.status("stage1", 100, 1000, {"loss/critic": 0.25})
    clock.now += 20
    writer.status("stage1", 300, 1000, {"loss/critic": 0.125, "recon": 0.0123456})
    writer.close()
    assert stream.getvalue().splitlines() == [
        "stage1  100/1000  10%  critic 0.25",
        "stage1  300/1000  30%  10 steps/s  ETA 1m10s  critic 0.125  recon 0.01235",
    ]


def test_plain_lines_come_every_ten_seconds_and_at_the_last_step(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = RunLog(tmp_path, stream=stream, clock=clock)
    for step in range(100):
        clock.now = 100.0 + step
        writer.status("stage1", step + 1, 100, {})
    writer.close()
    shown = [int(n) for n in re.findall(r"(\d+)/100", stream.getvalue())]
    assert shown == [*range(1, 101, 10), 100]


def test_the_rate_is_that_of_the_last_thirty_seconds(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = RunLog(tmp_path, stream=stream, clock=clock)
    step = 0
    for steps_per_second in [1] * 60 + [7] * 40:
        writer.status("stage1", step, 10**6, {})
        clock.now += 1
        step += steps_per_second
    writer.status("stage1", step, 10**6, {})
    assert stream.getvalue().splitlines()[-1].split("  ")[3] == "7 steps/s"


def test_the_rate_of_a_stage_starts_with_it(tmp_path):
    clock, stream = Clock(), io.StringIO()
    writer = RunLog(tmp_path, stream=stream, clock=clock)
    for stage, step in [("stage1", 1000), ("stage2", 10), ("stage2", 30)]:
        writer.status(stage, step, 1000, {})
        clock.now += 10
    assert "  2 steps/s  ETA 8m05s" in stream.getvalue().splitlines()[-1]


@pytest.mark.parametrize("columns", [6, 8, 30, 60, 80])
def test_a_live_line_is_narrower_than_the_terminal_and_cuts_no_number(tmp_path, columns):
    terminal, clock = Terminal(columns), Clock()
    writer = RunLog(tmp_path, stream=terminal.stream, clock=clock)
    losses = {f"loss/number{i}": 0.123456 for i in range(9)}
    for step in (100, 200, 300):
        writer.status("stage1", step, 1000, losses)
        clock.now += 1
    writer.close()
    shown, drawn = terminal.rows()
    assert max(map(len, drawn)) < columns
    assert shown[0].startswith("stage1"[: columns - 1]) and shown[1:] == [""]
    assert all(word == "0.1235" for word in re.findall(r"number\d (\S+)", shown[0]))


@pytest.mark.parametrize("columns", [80, 0])  # unknown, as under `script` in cron
def test_a_live_line_is_drawn_over_the_one_before(tmp_path, columns):
    terminal, clock = Terminal(columns), Clock()
    writer = RunLog(tmp_path, stream=terminal.stream, clock=clock)
    writer.status("stage1", 1, 9, {"loss/long_name": 0.123})
    clock.now += 1
    writer.status("stage1", 2, 9, {})
    writer.close()
    assert terminal.rows()[0] == ["stage1  2/9  22%  1 steps/s  ETA 7s", ""]


def test_a_terminal_is_not_flooded_but_shows_the_last_step(tmp_path):
    terminal = Terminal(80)
    writer = RunLog(tmp_path, stream=terminal.stream, clock=Clock())
    for step in range(1, 10):
        writer.status("stage1", step, 9, {})
    writer.close()
    assert re.findall(r"(\d)/9", " ".join(terminal.rows()[1])) == ["1", "9"]


def test_a_message_does_not_tear_the_status_line(tmp_path):
    terminal = Terminal(80)
    console.setup(terminal.stream)
    writer = RunLog(tmp_path, stream=terminal.stream)
    writer.status("stage1", 1, 9, {"loss/a": 1.0})
    logging.getLogger("pmjax.training").info("saved\nand well")
    writer.close()
    assert terminal.rows()[0] == ["saved", "and well", "stage1  1/9  11%  a 1", ""]
