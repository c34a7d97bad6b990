"""Two runs on one workdir: the second is refused, unless the first is dead."""

import contextlib
import errno
import json
import os
import platform
import signal
import subprocess
import sys
import threading
import time

import pytest

from pmjax.errors import UserError
from pmjax.storage import lock, workdir
from tests.small_run import ROOT, SMALL, run_command

HOLD = """
import sys, time
from pathlib import Path
from pmjax.storage import workdir
with workdir.lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""

# Takes the system's lock, and writes the owner's file once it reads a line.
LATE = (
    """
import sys
from pmjax.storage import lock
claim = lock._claim
def late(*args):
    print("flock", flush=True)
    sys.stdin.readline()
    return claim(*args)
lock._claim = late
"""
    + HOLD
)


@contextlib.contextmanager
def started(code, folder, said):
    """A process that has come to say something."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == f"{said}\n"
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def holder(tmp_path):
    """A process that trains in tmp_path/run, as far as others can see."""
    with started(HOLD, tmp_path / "run", "locked") as process:
        yield process


@pytest.fixture(scope="module")
def dead():
    """What a process that is gone has written."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return json.dumps({"host": platform.node(), "pid": process.pid})


def test_a_second_run_is_rejected_with_the_process_and_host_of_the_first(holder, tmp_path):
    done = run_command("main", *SMALL, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 2
    first = f"Process {holder.pid} on {platform.node()} uses the workdir {tmp_path / 'run'}"
    assert first in done.stderr and "another --workdir" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "config.json").exists()


def test_the_lock_of_a_killed_run_blocks_nobody(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    owner = tmp_path / "run" / ".run.owner"
    assert json.loads(owner.read_text())["pid"] == holder.pid
    with workdir.lock(tmp_path / "run"):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert not owner.exists()


@pytest.mark.parametrize("before", ["none", "empty", "dead"])
def test_a_rejection_waits_for_the_name_of_the_owner(before, dead, tmp_path, monkeypatch):
    folder = tmp_path / "run"
    folder.mkdir()
    if before != "none":
        (folder / ".run.owner").write_text(dead if before == "dead" else "")
    with started(LATE, folder, "flock") as first:

        def sleep(seconds):  # until the next look
            monkeypatch.undo()
            first.stdin.write("\n")
            first.stdin.flush()
            assert first.stdout.readline() == "locked\n"

        monkeypatch.setattr(lock, "GRACE", 600.0)
        monkeypatch.setattr(lock.time, "sleep", sleep)
        with pytest.raises(UserError, match=f"Process {first.pid} on {platform.node()} uses"):
            with workdir.lock(folder):
                pytest.fail("it lives")


def test_an_owner_that_never_writes_its_name_is_not_regarded_as_dead(dead, tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "GRACE", 0.1)
    with started(LATE, tmp_path, "flock"):
        (tmp_path / ".run.owner").write_text(dead)
        with pytest.raises(UserError, match="Another process uses the workdir"):
            with workdir.lock(tmp_path):
                pytest.fail("it lives")


def test_an_empty_owner_file_blocks_nobody(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 10**6)
    owner = tmp_path / ".run.owner"
    owner.touch()
    looks, sleep = [], time.sleep

    def look(seconds):
        looks.append(seconds)
        assert len(looks) < 20, "it waits for a heartbeat"
        sleep(seconds)

    monkeypatch.setattr(lock.time, "sleep", look)
    with workdir.lock(tmp_path):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert not owner.exists()


def test_no_owner_file_remains_on_a_full_disk(tmp_path):
    full = "import resource as r; r.setrlimit(r.RLIMIT_FSIZE, (0, r.RLIM_INFINITY))"
    done = subprocess.run(
        [sys.executable, "-c", HOLD.replace("with w", f"{full}\nwith w"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "File too large" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


@pytest.fixture
def elsewhere(tmp_path):
    """The owner's file of a run on another host, whose system lock does not reach here."""
    owner = tmp_path / ".run.owner"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    return owner


def test_a_lock_of_another_host_rejects_after_its_heartbeat(elsewhere, tmp_path):
    refused = threading.Event()

    def live():
        while not refused.wait(0.1):
            os.utime(elsewhere)

    beat = threading.Thread(target=live)
    beat.start()
    try:
        with pytest.raises(UserError, match="Process 7 on elsewhere uses the workdir"):
            with workdir.lock(tmp_path):
                pytest.fail("it lives")
    finally:
        refused.set()
        beat.join()
    assert elsewhere.exists()


def test_the_lock_of_a_dead_host_is_taken_over(elsewhere, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 0.2)
    with workdir.lock(tmp_path):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()
    said = caplog.text
    assert "Process 7 on elsewhere uses the workdir" in said and "for a heartbeat" in said
    assert "no longer uses the workdir" in said and "taking over" in said


@pytest.fixture
def unsupported(monkeypatch):
    """A file system without locks."""

    def flock(*args):
        raise OSError("not supported")

    monkeypatch.setattr(lock.fcntl, "flock", flock)


def test_without_system_locks_a_living_owner_still_rejects(holder, tmp_path, unsupported):
    with pytest.raises(UserError, match=f"Process {holder.pid} on"):
        with workdir.lock(tmp_path / "run"):
            pytest.fail("it lives")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with workdir.lock(tmp_path / "run"):
        time.sleep(0)


@pytest.mark.parametrize("links", [True, False])
def test_a_new_owner_is_not_mistaken_for_the_dead_one(
    links, dead, holder, tmp_path, monkeypatch, unsupported
):
    owner = tmp_path / "run" / ".run.owner"
    living = owner.read_text()
    owner.write_text(dead)
    alive = lock._alive

    def slow(pid):  # so that another is quicker to take over
        monkeypatch.setattr(lock, "_alive", alive)
        assert not alive(pid)
        owner.write_text(living)
        return False

    monkeypatch.setattr(lock, "_alive", slow)
    if not links:
        monkeypatch.setattr(lock.os, "link", no_link)
    with pytest.raises(UserError, match=f"Process {holder.pid} on"):
        with workdir.lock(tmp_path / "run"):
            pytest.fail("it lives")
    assert owner.read_text() == living
    assert {path.name for path in owner.parent.iterdir()} == {".run.lock", ".run.owner"}


def no_link(*args):
    raise PermissionError(errno.EPERM, "no hard links here")


def test_locks_work_without_hard_links(dead, tmp_path, monkeypatch):
    monkeypatch.setattr(lock.os, "link", no_link)
    owner = tmp_path / ".run.owner"
    owner.write_text(dead)
    with workdir.lock(tmp_path):
        assert json.loads(owner.read_text())["pid"] == os.getpid()
    assert [path.name for path in tmp_path.iterdir()] == [".run.lock"]


def test_an_old_owner_does_not_remove_the_new_owner_s_file(tmp_path):
    owner = tmp_path / ".run.owner"
    with workdir.lock(tmp_path):
        owner.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    assert json.loads(owner.read_text())["pid"] == 7


def test_one_of_many_simultaneous_runs_gets_the_workdir(tmp_path):
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
    assert winner.stdout.readline() == "locked\n"
    winner.kill()
    for process in processes:
        error = process.communicate()[1]
        assert process is winner or f"Process {winner.pid} on" in error
