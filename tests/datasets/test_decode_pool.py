"""Tests of decoding: in processes, after kills, with others at work, and on full disks."""

import errno
import importlib
import io
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from pmjax.datasets import cache, decode_pool, decode_worker, loader
from pmjax.errors import UserError
from pmjax.storage import lock

NUMBER = 60  # of images: 54 to train and 6 to test, in chunks of four


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keeps the cache of the user out of it, and chunks small."""
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(decode_pool, "CHUNK", 4)


@pytest.fixture
def folder(tmp_path):
    """A directory with images in two classes."""
    random = np.random.default_rng(0)
    for i in range(NUMBER):
        file = tmp_path / "images" / "ab"[i % 2] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (30, 20, 3)).astype(np.uint8)).save(file)
    return tmp_path / "images"


def load(folder, split="train", **kwargs):
    """Loads the images of a directory."""
    return loader.load("image_folder", split, path=folder, **{"size": 16, **kwargs})


@pytest.fixture
def processes(monkeypatch):
    """Has two processes decode, whatever the machine and the time; returns those started."""
    monkeypatch.setattr(decode_pool, "cores", lambda: 2)
    monkeypatch.setattr(decode_pool, "WORTHWHILE", -1.0)
    started = []
    original = decode_pool._Process.__init__

    def start(self, job):
        original(self, job)
        started.append(self)

    monkeypatch.setattr(decode_pool._Process, "__init__", start)
    return started


@pytest.fixture
def chunks(monkeypatch):
    """Lists the chunks that are decoded in this process."""
    decoded = []
    original = decode_worker.decode_chunk

    def decode_chunk(records, file, size, start, stop):
        decoded.append((file.stem, start))
        return original(records, file, size, start, stop)

    monkeypatch.setattr(decode_worker, "decode_chunk", decode_chunk)
    return decoded


ALL = [("train", start) for start in range(0, 54, 4)] + [("test", 0), ("test", 4)]


# In processes.


def test_processes_give_the_bytes_that_one_process_gives(folder, tmp_path, processes, monkeypatch):
    (folder / "a" / "broken.png").write_bytes(b"no image")
    many = [load(folder, split, skip_broken=True) for split in loader.SPLITS]
    assert len(processes) == 2 and all(p._process.poll() is not None for p in processes)
    monkeypatch.setattr(decode_pool, "cores", lambda: 1)
    for part in many:
        split = "train" if len(part.data) > 20 else "test"
        alone = load(folder, split, skip_broken=True, cache_dir=tmp_path / "alone")
        assert alone.fingerprint == part.fingerprint and alone.skipped == part.skipped
    assert len(processes) == 2 and sum(len(part.skipped) for part in many) == 1


def test_little_work_starts_no_process(folder, processes, monkeypatch):
    monkeypatch.setattr(decode_pool, "WORTHWHILE", 1e9)
    load(folder)
    assert not processes


def test_a_process_that_decodes_loads_neither_jax_nor_tensorflow():
    script = "import sys, pmjax.datasets.decode_worker; print(*sys.modules, sep='\\n')"
    loaded = subprocess.check_output([sys.executable, "-c", script], text=True).split()
    assert not {"jax", "tensorflow", "tensorflow_datasets", "grain"} & set(loaded)


def test_a_process_finds_modules_in_directories_with_colons(tmp_path, monkeypatch):
    place = tmp_path / "run_12:30"
    place.mkdir()
    (place / "my_records.py").write_text("class Records(list):\n    pass\n")
    monkeypatch.syspath_prepend(str(place))
    data = io.BytesIO()
    Image.new("L", (3, 3), 200).save(data, "PNG")
    records = importlib.import_module("my_records").Records([{"image": data.getvalue()}])
    np.lib.format.open_memmap(tmp_path / "x.npy", "w+", np.uint8, (1, 2, 2, 3))
    worker = decode_pool._Process(({"train": records}, {"train": tmp_path / "x.npy"}, 2))
    try:
        assert not worker.ask(("train", 0, 1))["broken"]
    finally:
        worker.end()
    assert np.load(tmp_path / "x.npy").min() == 200


def test_a_process_that_dies_is_reported_and_the_next_start_resumes(
    folder, processes, chunks, monkeypatch
):
    original = decode_pool._Process.ask

    def ask(self, task):
        if task == ("train", 24, 28):
            self._process.kill()
        return original(self, task)

    with monkeypatch.context() as patch:
        patch.setattr(decode_pool._Process, "ask", ask)
        with pytest.raises(UserError, match="status -9.*memory.*24 to 28 of the train split.*on"):
            load(folder)
    monkeypatch.setattr(decode_pool, "cores", lambda: 1)
    chunks.clear()
    assert len(load(folder).data) == 54
    assert ("train", 24) in chunks and ("train", 0) not in chunks


def test_an_error_in_a_process_reaches_the_caller(folder, processes, monkeypatch):
    tasks = [("train", 0, 4), ("train", 4, 8)]
    splits = loader._source("image_folder", path=folder, manual_dir=None, seed=0).records()
    with pytest.raises(FileNotFoundError):
        list(decode_pool._in_processes(tasks, (splits, {"train": folder / "gone.npy"}, 16), 2))
    assert all(p._process.poll() is not None for p in processes)


# After kills.


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_preparation_resumes_where_it_stopped(
    folder, tmp_path, chunks, monkeypatch, kind
):
    original = decode_worker.decode_chunk

    def decode_chunk(records, file, size, start, stop):
        if start == 20:
            raise kind
        return original(records, file, size, start, stop)

    with monkeypatch.context() as patch:
        patch.setattr(decode_worker, "decode_chunk", decode_chunk)
        with pytest.raises(kind):
            load(folder)
    assert chunks == ALL[:5]
    resumed = load(folder)
    assert chunks == ALL
    assert resumed.fingerprint == load(folder, cache_dir=tmp_path / "fresh").fingerprint
    (entry,) = [p for p in (tmp_path / "cache" / "image_folder").iterdir() if p.is_dir()]
    assert sorted(p.name for p in entry.iterdir()) == [
        "meta.json", "test.npy", "test_labels.npy", "train.npy", "train_labels.npy",
    ]  # fmt: skip


SCRIPT = """
import os, sys, time
from pmjax.datasets import loader
from pmjax.datasets import decode_pool

decode_pool.CHUNK, decode_pool.WORTHWHILE, decode_pool.cores = 4, -1.0, lambda: 2
original = decode_pool._Process.__init__
def start(self, job):
    original(self, job)
    print(self._process.pid, flush=True)
decode_pool._Process.__init__ = start
inner = decode_pool._decode
def wait():
    time.sleep({delay})
    while {until!r} and not os.path.exists({until!r}):
        time.sleep(0.01)
def slow(*args):
    for chunk in inner(*args):
        wait()
        yield chunk
decode_pool._decode = slow
print(loader.load("image_folder", "train", path={folder!r}, size=16).fingerprint)
"""


def start_preparation(folder, delay=0.0, until=""):
    """Starts a process that prepares the set slowly, or once a file exists, with two processes."""
    script = SCRIPT.format(folder=str(folder), delay=delay, until=str(until))
    return subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def wait_for(condition):
    """Returns something that comes within seconds."""
    for _ in range(3000):
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("it never came")


def journal(tmp_path):
    """Returns the lines of the journal of what is prepared."""
    return [
        line for file in tmp_path.glob("cache/image_folder/.*.work/journal.jsonl")
        for line in file.read_text().splitlines()
    ]  # fmt: skip


def gone(pid):
    """Tells whether a process has ended."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_a_preparation_killed_in_the_middle_resumes_to_the_same_bytes(folder, tmp_path, chunks):
    process = start_preparation(folder, delay=0.5)
    wait_for(lambda: len(journal(tmp_path)) >= 4)
    process.send_signal(signal.SIGKILL)
    workers = process.communicate()[0].split()
    done = {tuple(json.loads(line)[0][:2]) for line in journal(tmp_path)}
    assert len(workers) == 2 and 4 <= len(done) < len(ALL)
    wait_for(lambda: all(gone(pid) for pid in workers))
    resumed = load(folder)
    assert set(chunks) == set(ALL) - done
    assert resumed.fingerprint == load(folder, cache_dir=tmp_path / "fresh").fingerprint


@pytest.mark.parametrize("harm", ["rows", "line", "shape"])
def test_files_that_a_kill_left_half_written_are_made_again(
    folder, tmp_path, chunks, monkeypatch, harm
):
    with monkeypatch.context() as patch:
        patch.setattr(decode_pool, "_gather", None)
        with pytest.raises(TypeError):
            load(folder)
    (work,) = tmp_path.glob("cache/image_folder/.*.work")
    if harm == "rows":
        content = bytearray((work / "train.npy").read_bytes())
        content[-1] ^= 1  # of the 14th chunk
        (work / "train.npy").write_bytes(content)
        expected = [("train", 52)]
    elif harm == "line":
        content = (work / "journal.jsonl").read_bytes()
        (work / "journal.jsonl").write_bytes(content[:-5])
        expected = [("test", 4)]
    else:
        os.truncate(work / "test.npy", 500)
        expected = [("test", 0), ("test", 4)]
    chunks.clear()
    resumed = load(folder)
    assert chunks == expected
    assert resumed.fingerprint == load(folder, cache_dir=tmp_path / "fresh").fingerprint


def test_a_kill_while_publishing_costs_no_decoding(folder, tmp_path, chunks, monkeypatch):
    for file in folder.rglob("*.png"):
        Image.open(file).convert("L").save(file)  # so that a smaller file replaces the first
    with monkeypatch.context() as patch:
        patch.setattr(cache.Path, "rename", lambda *args: sys.exit())
        with pytest.raises(SystemExit):
            load(folder)
    chunks.clear()
    assert load(folder).data.shape == (54, 16, 16, 1) and not chunks


# With others at work.


def test_a_second_process_waits_with_a_message_and_uses_the_result_of_the_first(folder, tmp_path):
    go = tmp_path / "go"
    first = start_preparation(folder, until=go)
    wait_for(lambda: list(tmp_path.glob("cache/image_folder/.*.owner")))
    second = start_preparation(folder)
    waits = second.stderr.readline()
    go.touch()
    out, _ = second.communicate()
    assert f"Process {first.pid} on {platform.node()} prepares data set 'image_folder'" in waits
    assert out.split() == first.communicate()[0].split()[2:]  # it started no process


def test_a_killed_owner_of_the_lock_blocks_nobody(folder, tmp_path, chunks):
    process = start_preparation(folder, delay=0.2)
    wait_for(lambda: journal(tmp_path))
    process.kill()
    process.communicate()
    (owner,) = tmp_path.glob("cache/image_folder/.*.owner")
    assert json.loads(owner.read_text()) == {"host": platform.node(), "pid": process.pid}
    assert len(load(folder).data) == 54 and not owner.exists()


@pytest.fixture
def elsewhere(tmp_path):
    """The owner's file of a process on another host, whose system lock does not reach here."""
    owner = tmp_path / ".entry.owner"
    owner.write_text(json.dumps({"host": "elsewhere", "pid": 7}))
    return owner


def test_an_owner_on_another_host_is_waited_for_while_it_lives(
    elsewhere, tmp_path, caplog, monkeypatch
):
    looks = []

    def sleep(seconds):  # until the next look: a heartbeat each time, and then the end
        looks.append(seconds)
        os.utime(elsewhere) if len(looks) < 5 else elsewhere.unlink()

    monkeypatch.setattr(lock.time, "sleep", sleep)
    with lock.lock(tmp_path / "entry", "it"):
        assert len(looks) == 5
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()
    assert not elsewhere.exists()
    assert "Process 7 on elsewhere prepares it: waiting" in caplog.text


def test_an_owner_on_another_host_without_a_heartbeat_is_replaced(
    elsewhere, tmp_path, caplog, monkeypatch
):
    monkeypatch.setattr(lock, "STALE", 0.1)
    with lock.lock(tmp_path / "entry", "it"):
        assert json.loads(elsewhere.read_text())["pid"] == os.getpid()
    assert "Process 7 on elsewhere no longer prepares it" in caplog.text


def test_an_owner_sends_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with lock.lock(tmp_path / "entry", "it"):
        owner = tmp_path / ".entry.owner"
        os.utime(owner, ns=(0, 0))
        wait_for(lambda: owner.stat().st_mtime_ns)


def test_without_locks_of_the_system_a_dead_process_is_recognised(tmp_path, monkeypatch):
    def unsupported(*args):
        raise OSError("not supported")

    monkeypatch.setattr(lock.fcntl, "flock", unsupported)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    owner = tmp_path / ".entry.owner"
    owner.write_text(json.dumps({"host": platform.node(), "pid": dead.pid}))
    with lock.lock(tmp_path / "entry", "it"):
        assert json.loads(owner.read_text())["pid"] == os.getpid()


# On full disks.


def test_too_little_disk_is_reported_with_numbers_before_anything_is_decoded(
    folder, tmp_path, chunks, monkeypatch
):
    Usage = namedtuple("Usage", "free")
    monkeypatch.setattr(decode_pool.shutil, "disk_usage", lambda path: Usage(11_000_000))
    with pytest.raises(UserError) as e:
        load(folder, size=256)  # 60 * 256 * 256 * 3 = 11.8 million bytes
    for text in ("needs 0.012 GB", "0.011 GB are free", "--config.data.cache_dir", "PMJAX_CACHE"):
        assert text in str(e.value)
    assert not chunks and not list(tmp_path.glob("cache/image_folder/.*.work"))


def test_a_disk_that_fills_up_meanwhile_is_reported(folder, tmp_path, processes, monkeypatch):
    def ask(self, task):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode_pool._Process, "ask", ask)
    with pytest.raises(UserError, match="No space left for data set 'image_folder'"):
        load(folder)
    assert not list(tmp_path.glob("cache/image_folder/.*.work"))
