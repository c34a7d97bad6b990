"""Two runs on one workdir: the second is refused, unless the first is dead."""

import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT, SMALL, run_command

from pmjax import workdir
from pmjax.datasets import _lock
from pmjax.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from pmjax import workdir
with workdir.held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """A process that trains in tmp_path/run, as far as others can see."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path / "run")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def test_a_second_run_is_refused_with_the_process_and_host_of_the_first(holder, tmp_path):
    done = run_command("main", *SMALL, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    first = f"Process {holder.pid} on {platform.node()} uses the workdir {tmp_path / 'run'}"
    assert first in done.stderr and "another --workdir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_a_killed_run_leaves_a_lock_that_holds_nobody_up(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    owner = tmp_path / "run" / ".run.owner"
    assert json.loads(owner.read_text())["pid"] == holder.pid
    with workdir.held(tmp_path / "run"):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert not owner.exists()


@pytest.fixture
def elsewhere(tmp_path):
    """The owner's file of a run on another host, whose system lock does not reach here."""
    owner = tmp_path / ".run.owner"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    return owner


def test_a_run_on_another_host_is_refused_once_it_gives_a_sign_of_life(elsewhere, tmp_path):
    beat = threading.Timer(0.3, os.utime, [elsewhere])
    beat.start()
    with pytest.raises(UserError, match="Process 7 on elsewhere uses the workdir"):
        with workdir.held(tmp_path):
            pytest.fail("it lives")
    beat.join()
    assert elsewhere.exists()


def test_a_run_on_another_host_that_is_gone_is_taken_over_from(
    elsewhere, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(_lock, "STALE", 0.2)
    with workdir.held(tmp_path):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()
    said = capsys.readouterr().err
    assert "Process 7 on elsewhere uses the workdir" in said and "sign of life" in said
    assert "no longer uses the workdir" in said and "taking over" in said


def test_without_locks_of_the_system_a_living_process_is_refused(holder, tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError("not supported")

    monkeypatch.setattr(_lock.fcntl, "flock", unsupported)
    with pytest.raises(UserError, match=f"Process {holder.pid} on"):
        with workdir.held(tmp_path / "run"):
            pytest.fail("it lives")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workdir.held(tmp_path / "run"):
        time.sleep(0)


def test_of_many_that_start_at_once_one_gets_the_workdir(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", HOLD, str(tmp_path / "run")],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    deadline = time.monotonic() + 120
    while sum(p.poll() is None for p in processes) > 1:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (winner,) = [p for p in processes if p.poll() is None]
    assert winner.stdout.readline() == "held\n"
    winner.kill()
    for process in processes:
        error = process.communicate()[1]
        assert process is winner or f"Process {winner.pid} on" in error
