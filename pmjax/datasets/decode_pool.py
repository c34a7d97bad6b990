"""Decodes all images of a data set, in parallel processes where that is faster, and resumably.

Chunks of images are written to their rows of the final .npy files. A journal has one line per
finished chunk, with a checksum of its rows. After a kill, chunks with matching checksums are not
decoded again, and the result has the same bytes.
"""

import contextlib
import dataclasses
import json
import math
import os
import pickle
import queue
import shutil
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap

from pmjax.datasets import decode_worker
from pmjax.errors import UserError
from pmjax.reporting.progress import progress

CHUNK = 512  # images per task of a process; a kill loses at most one chunk per process
WORTHWHILE = 5.0  # seconds of remaining work above which starting processes is faster

Task = tuple[str, int, int]  # split, start, stop


class WorkerDied(UserError):
    """A decoding process ended unexpectedly; finished chunks are not lost."""


@dataclasses.dataclass
class Decoded:
    """A decoded split."""

    data: np.ndarray  # uint8 [N, size, size, 3], read-only
    labels: list  # [N] of int or None
    color: bool  # whether any image has colors
    broken: dict[int, tuple[str, str]]  # file and reason; their rows are zero


def cores() -> int:
    """Returns how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def decode_all(
    splits: Mapping[str, Sequence[dict]], work: Path, *, name: str, size: int
) -> dict[str, Decoded]:
    """Decodes all splits into files SPLIT.npy of the directory `work`, skipping finished chunks.

    Raises:
        UserError: before decoding, if the disk has too little space.
    """
    shapes = {split: (len(records), size, size, 3) for split, records in splits.items()}
    files = {split: work / f"{split}.npy" for split in splits}
    require_space(work, {files[s]: math.prod(shape) for s, shape in shapes.items()}, name)
    for split, shape in shapes.items():
        if not _is_array(files[split], shape):
            open_memmap(files[split], "w+", np.uint8, shape).flush()
    data = {split: np.load(file, mmap_mode="r") for split, file in files.items()}
    todo = [
        (split, start, min(start + CHUNK, shape[0]))
        for split, shape in shapes.items()
        for start in range(0, shape[0], CHUNK)
    ]
    log = work / "journal.jsonl"
    done = _read_journal(log, data, set(todo))
    todo = [task for task in todo if task not in done]
    bar = progress(name, sum(map(len, splits.values())), initial=sum(b - a for _, a, b in done))
    with bar, log.open("a") as journal:
        for task, chunk in _decode(todo, (dict(splits), files, size)):
            done[task] = chunk
            print(json.dumps([task, chunk]), file=journal, flush=True)
            bar.update(task[2] - task[1])
    return {split: _gather(data[split], [done[t] for t in sorted(done) if t[0] == split])
            for split in splits}  # fmt: skip


def require_space(folder: Path, files: Mapping[Path, int], name: str) -> None:
    """Raises a `UserError` if the disk lacks space for the rest of files {path: bytes}."""
    needed = sum(files.values()) - sum(f.stat().st_blocks * 512 for f in files if f.exists())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"No space left for data set '{name}': it needs {needed / 1e9:.3f} GB in "
            f"{folder.parent}, where {free / 1e9:.3f} GB are free. Free some space, or set "
            "cache_dir (--config.data.cache_dir) or the variable PMJAX_CACHE to another disk."
        )


def _is_array(file: Path, shape: tuple[int, ...]) -> bool:
    with contextlib.suppress(OSError, ValueError):
        return np.load(file, mmap_mode="r").shape == shape
    return False


def _read_journal(file: Path, data: dict[str, np.ndarray], tasks: set[Task]) -> dict[Task, dict]:
    """Returns the chunks whose rows match the journal, and deletes the others from it."""
    done: dict[Task, dict] = {}
    for line in file.read_text().splitlines() if file.exists() else ():
        with contextlib.suppress(ValueError, TypeError, KeyError):  # a line truncated by a kill
            task, chunk = json.loads(line)
            task = tuple(task)
            rows = data[task[0]][task[1] : task[2]]
            if task in tasks and "color" in chunk and zlib.crc32(rows) == chunk["crc"]:
                done[task] = chunk
    new = file.with_suffix(".new")
    new.write_text("".join(f"{json.dumps([task, chunk])}\n" for task, chunk in done.items()))
    new.replace(file)
    return done


def _gather(data: np.ndarray, chunks: list[dict]) -> Decoded:
    return Decoded(
        data,
        [label for chunk in chunks for label in chunk["labels"]],
        any(chunk["color"] for chunk in chunks),
        {int(i): why for chunk in chunks for i, why in chunk["broken"].items()},
    )


def _decode(tasks: list[Task], job: tuple) -> Iterator[tuple[Task, dict]]:
    """Yields chunks as they are done: here while little is left to do, else by processes."""
    splits, files, size = job
    while tasks:
        split, start, stop = tasks[0]
        began = time.monotonic()
        yield tasks[0], decode_worker.decode_chunk(splits[split], files[split], size, start, stop)
        each = (time.monotonic() - began) / (stop - start)
        tasks = tasks[1:]
        workers = min(cores(), len(tasks))
        if workers > 1 and each * sum(stop - start for _, start, stop in tasks) > WORTHWHILE:
            yield from _in_processes(tasks, job, workers)
            return


def _in_processes(tasks: list[Task], job: tuple, number: int) -> Iterator[tuple[Task, dict]]:
    with contextlib.ExitStack() as stack:
        pool = stack.enter_context(ThreadPoolExecutor(number))
        idle: queue.SimpleQueue[_Process] = queue.SimpleQueue()
        for _ in range(number):
            worker = _Process(job)
            stack.callback(worker.end)
            idle.put(worker)

        def run(task: Task) -> dict:
            worker = idle.get()
            try:
                return worker.ask(task)
            finally:
                idle.put(worker)

        futures = {pool.submit(run, task): task for task in tasks}
        stack.callback(pool.shutdown, wait=False, cancel_futures=True)
        for future in as_completed(futures):
            yield futures[future], future.result()


class _Process:
    def __init__(self, job: tuple):
        path = [os.path.abspath(p) for p in sys.path]  # PYTHONPATH would cut them at colons
        code = f"import sys; sys.path[:] = {path}; import {decode_worker.__name__} as w; w.main()"
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdin and self._process.stdout  # for type checkers
        self._requests, self._results = self._process.stdin, self._process.stdout
        self._job = pickle.dumps(job)

    def ask(self, task: Task) -> dict:
        """Decodes the chunk of a task."""
        try:
            self._requests.write(self._job + pickle.dumps(task))
            self._requests.flush()
            self._job = b""  # sent only once
            answer = pickle.load(self._results)
        except (OSError, EOFError, pickle.UnpicklingError) as e:
            raise WorkerDied(
                f"A decoding process ended with status {self._process.wait()} (out of memory?) at "
                f"images {task[1]} to {task[2]} of the {task[0]} split. Run the same command again "
                "to continue from there."
            ) from e
        if isinstance(answer, Exception):
            raise answer
        return answer

    def end(self) -> None:
        """Kills the process, even within a chunk."""
        self._process.kill()
        self._process.wait()
        self._results.close()
        with contextlib.suppress(BrokenPipeError):  # unread input
            self._requests.close()
