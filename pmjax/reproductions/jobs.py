"""Runs the unfinished trainings of a study as processes, several at once, and follows them."""

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

MARK = "finished.json"  # in a workdir: the digest of the finished config, and the seconds
POLL_EVERY, PLAIN_EVERY = 0.5, 30.0  # seconds between polls, and status lines without a terminal
WIDTH = 100  # characters of a log line in the status
GRACE = 120.0  # seconds for a run to save its state after SIGTERM


@dataclasses.dataclass(frozen=True)
class Job:
    """A run with one seed: the digest of its config, its workdir, log and command."""

    run: Run
    seed: int
    digest: str
    workdir: Path
    log: Path
    command: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its name in messages."""
        return f"{self.run.name} seed {self.seed}"

    def seconds(self) -> float | None:
        """Returns the seconds it took if it is finished, else None."""
        try:
            found = json.loads((self.workdir / MARK).read_text())
        except (OSError, ValueError):
            return None
        done = found.get("config") == self.digest and (self.workdir / "metrics.json").is_file()
        return found.get("seconds", 0.0) if done else None


def plan(study: Study) -> list[Job]:
    """Returns all jobs, seed by seed, so that each method has a first result early.

    Raises:
      UserError: for an invalid config, and for a workdir of another config.
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
    """Returns a hash of everything that determines a run's model and metrics.

    A key that earlier versions lacked counts only if its value differs from their behavior, so that
    finished runs remain finished when a key is added. Arguments of priors always count: the ones
    added to `code_prior` are old ones of other priors.
    """
    values = workdirs.training_config(settings) | config.flat(settings.eval, "eval.")
    later = {n: v for n, v in config.flat(schema.ADDED).items() if not n.startswith("prior_args.")}
    values = {name: v for name, v in values.items() if name not in later or later[name] != v}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


@contextmanager
def locked(directory: Path) -> Iterator[int]:
    """Locks the directory; yields the lock's file descriptor, which the processes inherit.

    The orphans of a killed reproduction thus keep the lock, and a second reproduction cannot start
    the same runs.
    """
    workdirs.require_writable(directory)
    with (directory / ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"Another reproduction, or a run that it left behind, works in {directory}. Wait "
                "for it or end it; --report_only tabulates the finished runs."
            ) from None
        yield file.fileno()


def check_platform() -> None:
    """Raises `UserError` if JAX_PLATFORMS names a platform that JAX does not find.

    Another process tries it, because this one must not occupy the memory of the runs' GPUs.
    """
    named = os.environ.get("JAX_PLATFORMS") or os.environ.get("JAX_PLATFORM_NAME") or "cpu"
    if named == "cpu":
        return
    call = (
        "from pmjax.distributed import accelerators as a; from pmjax import cli; cli.run(a.start)"
    )
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, check=False)
    if done.returncode == 2:
        raise UserError(done.stderr.strip().removeprefix("Error: "))


def start(job: Job, slot: int, slots: int, lock: int) -> subprocess.Popen:
    """Starts a job on its share of the machine: every slots-th core, and one GPU."""
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with job.log.open("w") as file:
        process = subprocess.Popen(
            job.command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | share_of_gpus(slot, slots),
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C reaches only this process, which sends SIGTERM
        )
    cores = sorted(os.sched_getaffinity(0))
    if slots > 1:
        mine = cores[slot::slots] or [cores[slot % len(cores)]]
        with suppress(ProcessLookupError):  # it has already ended; its log has the reason
            os.sched_setaffinity(process.pid, mine)
    return process


def share_of_gpus(slot: int, slots: int) -> dict[str, str]:
    """Returns the environment that assigns a GPU, or a part of one, to a slot; {} without GPUs."""
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
    poll_every: float = POLL_EVERY,
) -> None:
    """Runs the unfinished jobs.

    Args:
      study: where failures are added.
      jobs: from `plan`.
      slots: number of processes at the same time.
      start: (job, slot) -> a process with poll(), send_signal(number) and wait(timeout).
      stream: of the status line (None: stderr).
      poll_every: seconds between polls of the processes.

    Raises:
      KeyboardInterrupt: after Ctrl-C, SIGTERM or SIGHUP, once the processes have saved their
        states.
    """
    took = [seconds for job in jobs if (seconds := job.seconds()) is not None]
    waiting = [job for job in jobs if job.seconds() is None]
    if len(waiting) < len(jobs):
        log.info("%d of %d runs are already finished.", len(jobs) - len(waiting), len(jobs))
    status = StatusLine(stream, every=PLAIN_EVERY)
    running: dict[int, tuple[Job, Any, float]] = {}
    caught = [signal.SIGTERM, signal.SIGHUP]
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # by nohup
        caught.remove(signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in caught}
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
                if why := _ended(job, process.poll(), began):
                    study.failures[job.run.name, job.seed] = f"failed: {why} (log: {job.log})"
                    log.warning("%s %s", job.name, study.failures[job.run.name, job.seed])
                else:
                    (job.workdir / MARK).write_text(
                        json.dumps({"config": job.digest, "seconds": round(seconds, 1)})
                    )
                    took.append(seconds)
                    log.info("%s: finished in %s.", job.name, duration(seconds))
            if running and status.due():
                status.show(_lines(jobs, waiting, running, took, slots, study.failures))
            if running:
                time.sleep(poll_every)
    except KeyboardInterrupt:
        log.info("Stopping; the runs save their states. The same command continues from there.")
        for _, process, _ in running.values():
            process.send_signal(signal.SIGTERM)
        for _, process, _ in running.values():
            process.wait(GRACE)
        raise
    finally:
        status.close(leave=False)
        for number, handler in before.items():
            signal.signal(number, handler)


def _ended(job: Job, status: int, began: float) -> str:
    """Returns why an ended job is not finished, or ''."""
    if status:
        lines = _last_lines(job.log) or ["no output"]
        errors = [index for index, line in enumerate(lines) if line.startswith("Error: ")]
        message = " ".join(lines[errors[-1] if errors else -1 :])
        return f"status {status}: {message.removeprefix('Error: ')}"
    metrics = job.workdir / "metrics.json"
    if not metrics.is_file() or metrics.stat().st_mtime < began - 1:
        return "it ended without metrics.json"
    return ""


def _lines(
    jobs: list[Job],
    waiting: list[Job],
    running: dict[int, tuple[Job, Any, float]],
    took: list[float],
    slots: int,
    failures: dict[tuple[str, int], str],
) -> list[str]:
    """Returns the status: the overall progress, then the last log line of each running job."""
    done = len(jobs) - len(waiting) - len(running)
    head = f"{done}/{len(jobs)} runs"
    if failures:
        head += f", {len(failures)} failed"
    if took:
        mean = sum(took) / len(took)
        ages = (time.time() - began for _, _, began in running.values())
        left = sum(max(mean - age, 0.1 * mean) for age in ages)
        head += f", ETA {duration((len(waiting) * mean + left) / slots)}"
    last = ((job, _last_lines(job.log) or ["starting"]) for job, _, _ in running.values())
    return [head, *(f"{job.name}: {lines[-1]}"[:WIDTH] for job, lines in last)]


def _last_lines(log: Path) -> list[str]:
    """Returns the last lines of a log that are not empty; [] without a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 16_000))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return [line.strip() for line in re.split(r"[\r\n]", text) if line.strip()]
