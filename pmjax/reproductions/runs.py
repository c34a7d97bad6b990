"""Starts the runs of a study that are not finished, and follows them."""

import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from ml_collections import ConfigDict

from pmjax import config, schema
from pmjax.errors import UserError
from pmjax.reporting.progress import StatusLine, duration
from pmjax.reproductions.base import Run, Study
from pmjax.storage import workdir as workdirs

log = logging.getLogger(__name__)

MARK = "finished.json"  # in a workdir: of which config it is finished, and how long that took
LOOK_EVERY, PLAIN_EVERY = 0.5, 30.0  # seconds between looks, and status lines without a terminal
WIDTH = 100  # characters of a run's own status
PATIENCE = 120.0  # seconds for a run that was told to stop to save its state


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with a seed: its config, where it works and logs, and the command."""

    run: Run
    seed: int
    digest: str
    workdir: Path
    log: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"{self.run.name} seed {self.seed}"

    def seconds(self) -> float | None:
        """Returns how long it took if it is finished, else None."""
        mark = self.workdir / MARK
        try:
            found = json.loads(mark.read_text())
        except (OSError, ValueError):
            return None
        done = found.get("config") == self.digest and (self.workdir / "metrics.json").is_file()
        return found.get("seconds", 0.0) if done else None


def plan(study: Study) -> list[Job]:
    """Returns all jobs, seed by seed, so that each method has a first result early.

    Raises:
      UserError: if a config is not valid, or a workdir belongs to another one.
    """
    jobs = []
    for seed in study.seeds:
        for run in study.runs:
            settings, where = study.settings(run, seed), study.workdir(run, seed)
            if (where / workdirs.CONFIG).is_file():
                workdirs.claim(settings, where)
            changes = (f"--config.{n}={text}" for n, text in study.changes(run, seed).items())
            command = (
                *(sys.executable, "-m", "pmjax.main", f"--config={study.config()}"),
                *(*changes, f"--workdir={where}"),
            )
            log = study.directory / "logs" / f"{run.name}-seed{seed}.log"
            jobs.append(Job(run, seed, digest(settings), where, log, command))
    return jobs


def digest(settings: ConfigDict) -> str:
    """Returns a hash of what decides a run's model and metrics.

    Keys that earlier versions lacked count only where they change what those versions did, so that
    runs stay finished when a key is new.
    """
    values = workdirs.training_config(settings) | config.flat(settings.eval, "eval.")
    later = config.flat(schema.ADDED)
    values = {name: v for name, v in values.items() if name not in later or later[name] != v}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def alone(directory: Path) -> Iterator[int]:
    """Holds the directory's lock, and gives its file descriptor to pass on to processes.

    They hold it as long as they live, so that a killed reproduction's orphans keep a second one
    from starting the same runs.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / ".lock").open("a")
    except OSError as error:
        raise UserError(f"{directory} cannot be written ({error.strerror}).") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another reproduction, or a run that one has left, works in {directory}. Wait for "
                f"it or end it; --report_only shows what is there already."
            ) from None
        yield lock.fileno()


def start(job: Job, slot: int, slots: int, lock: int) -> subprocess.Popen:
    """Starts a job with its share of the machine: every slots-th core, and GPU."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as log:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | share_of_gpus(slot, slots),
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C comes here first, and goes on as one SIGTERM
        )
    cores = sorted(os.sched_getaffinity(0))
    if slots > 1:
        mine = cores[slot::slots] or [cores[slot % len(cores)]]
        with suppress(ProcessLookupError):  # it has ended already; its log says why
            os.sched_setaffinity(process.pid, mine)
    return process


def share_of_gpus(slot: int, slots: int) -> dict[str, str]:
    """Returns the environment that gives a slot one GPU, or a part of one; {} without GPUs."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        found = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
        gpus = sorted(match[1] for match in found if match)
    else:
        gpus = [gpu for gpu in given.split(",") if gpu]
    if slots == 1 or not gpus:
        return {}
    share = 0.9 / -(-slots // len(gpus))
    return {
        "CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)],
        "XLA_PYTHON_CLIENT_MEM_FRACTION": f"{share:.2f}",
    }


def work(
    study: Study,
    jobs: list[Job],
    *,
    slots: int = 1,
    start: Callable[[Job, int], Any],
    stream: TextIO | None = None,
    look_every: float = LOOK_EVERY,
) -> None:
    """Runs the jobs that are not finished; what fails is kept in `study.failures`.

    Args:
      study: what they belong to.
      jobs: from `plan`.
      slots: how many at once.
      start: (job, slot) -> a process with poll(), send_signal(number) and wait(timeout).
      stream: where the status is shown (None: stderr).
      look_every: seconds between looks at the processes.

    Raises:
      KeyboardInterrupt: after Ctrl-C or SIGTERM, when the processes have saved their states.
    """
    took = [seconds for job in jobs if (seconds := job.seconds()) is not None]
    waiting = [job for job in jobs if job.seconds() is None]
    if len(waiting) < len(jobs):
        study.say(f"{len(jobs) - len(waiting)} of {len(jobs)} runs were finished before.")
    status, running = StatusLine(stream, every=PLAIN_EVERY), {}
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        while waiting or running:
            for slot in range(slots):
                if slot not in running and waiting:
                    job = waiting.pop(0)
                    running[slot] = job, start(job, slot), time.time()
            for slot, (job, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                seconds = time.time() - began
                why = _ended(job, process.poll(), began)
                if why:
                    study.failures[job.run.name, job.seed] = f"failed: {why} (log: {job.log})"
                    log.info(f"{job.name} {study.failures[job.run.name, job.seed]}")
                else:
                    (job.workdir / MARK).write_text(
                        json.dumps({"config": job.digest, "seconds": round(seconds, 1)})
                    )
                    took.append(seconds)
                    log.info(f"{job.name}: finished in {duration(seconds)}.")
            if running and status.due():
                status.show(_lines(jobs, waiting, running, took, slots, study.failures))
            if running:
                time.sleep(look_every)
    except KeyboardInterrupt:
        log.info("Stopping; the runs save their states. The same command goes on from there.")
        for _, process, _ in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process, _ in running.values():
            process.wait(PATIENCE)
        raise
    finally:
        status.close(leave=False)
        signal.signal(signal.SIGTERM, before)


def _ended(job: Job, status: int, began: float) -> str:
    """Returns why a job that has ended is not finished, or ''."""
    text = job.log.read_text(errors="replace").replace("\r", "\n") if job.log.is_file() else ""
    if status:
        _, found, error = text.rpartition("\nError: ")
        lines = [line for line in (error if found else text).splitlines() if line.strip()]
        said = " ".join(lines) if found else (lines[-1] if lines else "it said nothing")
        return f"status {status}: {said.strip()}"
    metrics = job.workdir / "metrics.json"
    if not metrics.is_file() or metrics.stat().st_mtime < began - 1:
        return "it ended without metrics.json"
    return ""


def _lines(jobs, waiting, running, took, slots, failures) -> list[str]:
    """Returns the status: how far all are, then the last words of each that is running."""
    done = len(jobs) - len(waiting) - len(running)
    head = f"{done}/{len(jobs)} runs"
    if failures:
        head += f", {len(failures)} failed"
    if took:
        mean = sum(took) / len(took)
        ages = (time.time() - began for _, _, began in running.values())
        left = sum(max(mean - age, 0.1 * mean) for age in ages)
        head += f", ETA {duration((len(waiting) * mean + left) / slots)}"
    return [head, *(f"{job.name}: {_last_line(job.log)}"[:WIDTH] for job, _, _ in running.values())]


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 4000))
            text = file.read().decode(errors="replace")
    except OSError:
        return "starting"
    lines = [line for line in re.split(r"[\r\n]", text) if line.strip()]
    return lines[-1].strip() if lines else "starting"
