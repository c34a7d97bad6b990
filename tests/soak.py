"""Kills a run repeatedly and checks that its final state is bit-identical.

python -m tests.soak --workdir=runs/soak --kills=50 [--hosts=2]
python -m tests.soak --workdir=runs/soak --config=configs/digits.py --minutes=120 --every=180

The reference is an uninterrupted run. In each round, a run in a new workdir is killed (SIGKILL) and
restarted until it finishes; its parameters, metrics and history must equal the reference's. Every
second kill is at a random time, the others are in a random phase. Of several hosts, one or all are
killed, and the others must end by themselves. Memory and descriptors of the first process are
sampled twice a second. They must not grow, neither while a process trains (see `tests/growth.py`)
nor from the first starts of the first rounds to those of the last rounds. (The memory of different
starts differs: a restored checkpoint leaves less memory behind than initialized nets.)
"""

import argparse
import collections
import contextlib
import hashlib
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from pmjax import cli
from pmjax.errors import UserError
from pmjax.reporting import history
from pmjax.storage.workdir import AUTOENCODER, CONFIG, EMBEDDINGS, prior_path
from tests import growth

PHASES = ("start", "stage 1", "embedding", "stage 2", "evaluation", "report", "checkpoint")
A_ROUND = 6  # most kills per round, so that rounds finish
TIMEOUT = 60  # seconds within which the other hosts must end, PMJAX_HOST_TIMEOUT
_POLL, _SAMPLE = 0.005, 0.5
# A run whose start, stages and evaluation have about the same duration.
_SMALL = {
    "nets": "mlp",
    "nets_args.width": "32",
    "latent_dim": "8",
    "prior_args.width": "32",
    "steps": "60",
    "stage2.steps": "60",
    "stage2.steps_per_dispatch": "10",
    "checkpoint.every": "10",
    "log_every": "5",
    "eval.metrics": "reconstruction,latent",
    "eval.num_samples": "64",
}


class Life:
    """One start of the command, as one process or several, and its measurements."""

    def __init__(self, args: Sequence[str], workdir: Path, *, hosts: int, cache: Path):
        """Starts the command; its output is appended to WORKDIR.log."""
        self._workdir, self._since = workdir, time.time()
        self.killed_in, self.waited = "", 0.0  # phase; seconds until all had ended
        self.samples: list[growth.Sample] = []
        self._sampled = 0.0
        command = [sys.executable, "-m", "pmjax.main", *args, f"--workdir={workdir}"]
        common = os.environ | {
            "PMJAX_CACHE": str(cache),
            "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"),
            "PYTHONUNBUFFERED": "1",
        }
        if hosts > 1:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                port = probe.getsockname()[1]
            common |= {
                "PMJAX_COORDINATOR": f"127.0.0.1:{port}",
                "PMJAX_NUM_PROCESSES": str(hosts),
                "PMJAX_HOST_TIMEOUT": str(TIMEOUT),
            }
        own = [{"PMJAX_PROCESS_ID": str(i)} if hosts > 1 else {} for i in range(hosts)]
        with workdir.with_suffix(".log").open("ab") as log:
            self._processes = [
                subprocess.Popen(command, env=common | mine, stdout=log, stderr=log) for mine in own
            ]

    @property
    def over(self) -> bool:
        """Whether all processes have ended."""
        return all(process.poll() is not None for process in self._processes)

    def require_success(self) -> None:
        """Raises `UserError` unless all processes have ended with status 0."""
        statuses = [process.returncode for process in self._processes]
        if any(statuses):
            raise UserError(
                f"A run failed without being killed (status {', '.join(map(str, statuses))}): see "
                f"{self._workdir}.log."
            )

    def phase(self) -> str:
        """Returns the phase of the run, from the files that this start has written."""

        def fresh(pattern: str) -> bool:
            with contextlib.suppress(OSError):
                return any(f.stat().st_mtime > self._since for f in self._workdir.glob(pattern))
            return False

        if fresh("checkpoints/*/*.orbax-checkpoint-tmp*"):
            return "checkpoint"
        reached = (
            ("report", "metrics.json"),
            ("evaluation", "priors/*.msgpack"),
            ("stage 2", "events/stage2/*"),
            ("embedding", AUTOENCODER),
            ("stage 1", "events/stage1/*"),
        )
        return next((name for name, pattern in reached if fresh(pattern)), "start")

    def watch(self, seconds: float, *, until: str | None = None) -> None:
        """Waits for some seconds, or until a phase or the end, and measures meanwhile."""
        end = time.monotonic() + seconds
        while not self.over and (left := end - time.monotonic()) > 0:
            phase = self.phase()
            if phase == until:
                break
            if time.monotonic() - self._sampled >= _SAMPLE:
                self._sampled = time.monotonic()
                pid, saves = self._processes[0].pid, self._workdir / "checkpoints" / "stage1"
                self.samples += growth.measure(pid, saves, phase=phase)
            time.sleep(min(left, _POLL if until else 0.1))

    @property
    def anew(self) -> bool:
        """Whether it started without a checkpoint."""
        return not self.samples or self.samples[0].saved < 0

    def steady(self) -> tuple[growth.Level, growth.Level] | None:
        """Returns memory and descriptors early and late in stage 1, if it was long enough."""
        return growth.ends([s for s in self.samples if s.phase in ("stage 1", "checkpoint")])

    def kill(self, victims: Sequence[int]) -> None:
        """Kills some processes and waits until the others have ended by themselves.

        Raises:
          UserError: if they have not ended within twice the timeout.
        """
        self.killed_in = self.phase()
        for index in victims:
            self._processes[index].kill()
        start = time.monotonic()
        while not self.over:
            if time.monotonic() - start > 2 * TIMEOUT:
                self.end()
                raise UserError(f"A host was killed but the others continued: {self._workdir}.log.")
            time.sleep(0.05)
        self.waited = time.monotonic() - start

    def end(self) -> None:
        """Kills the remaining processes."""
        for process in self._processes:
            process.kill()
            process.wait()


def results(workdir: Path) -> dict[str, str]:
    """Returns {name: digest} of a run's results, without times and earlier evaluations."""
    prior = json.loads((workdir / CONFIG).read_text())["prior"]
    files = (workdir / AUTOENCODER, workdir / EMBEDDINGS, prior_path(workdir, prior))
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    found["history.jsonl"] = hashlib.sha256(json.dumps(history.read(workdir)).encode()).hexdigest()
    found["report.html"] = str((workdir / "report.html").is_file())
    for name, value in json.loads((workdir / "metrics.json").read_text()).items():
        if name not in ("time", "history"):
            found[f"metrics.json's {name}"] = json.dumps(value, sort_keys=True)
    return found


def soak(
    args: Sequence[str],
    workdir: Path,
    *,
    kills: int,
    minutes: float,
    every: float,
    hosts: int,
    seed: int,
    say: Callable[[str], None] = print,
) -> bool:
    """Runs the reference and the rounds; returns whether all checks passed.

    Args:
      args: of `pmjax.main`, without the workdir.
      workdir: of all runs.
      kills: minimum number of kills.
      minutes: minimum duration.
      every: mean seconds between kills, of runs that find their programs compiled, because the
        compiler's memory stays with a process; 0: at random times and in random phases, of rounds
        that compile.
      hosts: processes per run.
      seed: of the random times.
      say: prints a line.

    Raises:
      UserError: if a run fails without being killed.
    """
    rng, cache = random.Random(seed), (workdir / "cache").absolute()
    workdir.mkdir(parents=True, exist_ok=True)
    start = time.monotonic()
    with _life(args, workdir / "reference", hosts=hosts, cache=cache) as reference:
        reference.watch(math.inf)
    reference.require_success()
    expected, length = results(workdir / "reference"), time.monotonic() - start
    say(f"The reference took {length:.0f} s.")
    say("round  kills  seconds  memory MB  growth  descriptors  result")
    rounds: list[Round] = []
    start = time.monotonic()
    try:
        while (left := kills - sum(r.kills for r in rounds)) > 0 or (
            time.monotonic() - start < 60 * minutes
        ):
            rounds.append(Round(workdir / f"round-{len(rounds)}"))
            most = A_ROUND if every else min(A_ROUND, left)
            moments = [_moment(rng, every=every, length=length) for _ in range(most)]
            if not every:
                shutil.rmtree(cache / "jax", ignore_errors=True)
            rounds[-1].run(args, moments, rng=rng, hosts=hosts, cache=cache, expected=expected)
            say(f"{len(rounds) - 1:5}  {rounds[-1].row()}")
    finally:  # also of an interrupted soak
        good = _verdict(reference, [r for r in rounds if r.wrong is not None], say)
        phases = collections.Counter(phase for r in rounds for phase in r.killed_in)
        waits = [life.waited for r in rounds for life in r.lives if life.killed_in]
        shown = ", ".join(f"{name} {phases[name]}" for name in PHASES)
        say(f"{phases.total()} kills in {(time.monotonic() - start) / 60:.1f} minutes: {shown}.")
        if hosts > 1:
            say(f"Hosts that were not killed ended within {max(waits, default=0):.1f} s.")
    return good


def _moment(rng: random.Random, *, every: float, length: float) -> tuple[str, float]:
    """Returns when to kill: after the start of a phase ('': of the run), and seconds later."""
    if every:
        return "", every * rng.uniform(0.5, 1.5)
    if rng.random() < 0.5:
        return "", rng.uniform(0, length)
    return rng.choice(PHASES), rng.uniform(0, 0.2)


class Round:
    """A run in a new workdir, through kills to its end.

    Attributes:
      lives: the starts of the command.
      wrong: names of the results that differ from the reference (None: not finished).
    """

    def __init__(self, workdir: Path, lives: Sequence[Life] = ()):
        """Names the workdir, which `run` empties."""
        self._workdir, self._seconds = workdir, 0.0
        self.lives, self.wrong = list(lives), None

    def run(
        self,
        args: Sequence[str],
        moments: Sequence[tuple[str, float]],
        *,
        rng: random.Random,
        hosts: int,
        cache: Path,
        expected: dict[str, str],
    ) -> None:
        """Runs, kills and compares; deletes the workdir if nothing differs."""
        shutil.rmtree(self._workdir, ignore_errors=True)
        start = time.monotonic()
        for phase, seconds in (*moments, ("", math.inf)):
            with _life(args, self._workdir, hosts=hosts, cache=cache) as life:
                self.lives.append(life)
                if phase:
                    life.watch(math.inf, until=phase)
                life.watch(seconds)
                if life.over:
                    break
                one = rng.randrange(hosts)
                life.kill([one] if rng.random() < 0.5 else range(hosts))
        life.require_success()
        found = results(self._workdir)
        self.wrong = [name for name in expected | found if found.get(name) != expected.get(name)]
        self._seconds = time.monotonic() - start
        if not self.wrong:
            shutil.rmtree(self._workdir)
            self._workdir.with_suffix(".log").unlink()

    @property
    def killed_in(self) -> list[str]:
        """The phases in which it was killed."""
        return [life.killed_in for life in self.lives if life.killed_in]

    @property
    def kills(self) -> int:
        """The number of kills."""
        return len(self.killed_in)

    def steady(self) -> growth.Level:
        """Returns memory and descriptors late in the first start's stage 1 (nan: too short)."""
        found = self.lives[0].steady()
        return found[1] if found else growth.Level(math.nan, math.nan)

    def row(self) -> str:
        """Returns a line of the table."""
        memory, descriptors = self.steady()
        grown = max((growth.share(*e) for life in self.lives if (e := life.steady())), default=0)
        result = f"differs: {', '.join(self.wrong)}" if self.wrong else "identical"
        return (
            f"{self.kills:5}  {self._seconds:7.0f}  {memory / 1e6:9.0f}  {grown:+6.1%}  "
            f"{descriptors:11.0f}  {result}"
        )


def _verdict(reference: Life, rounds: list[Round], say: Callable[[str], None]) -> bool:
    """Prints the outcome and returns whether all checks passed."""
    good = not any(each.wrong for each in rounds)
    same = sum(not each.wrong for each in rounds)
    say(f"Bit-identical to the run without a kill: {same} of {len(rounds)} rounds.")
    lives = [reference, *(life for each in rounds for life in each.lives)]
    for anew, name in ((True, "began anew"), (False, "went on")):
        found = [ends for life in lives if life.anew == anew and (ends := life.steady())]
        if found:
            shares = [growth.share(*ends) for ends in found]
            memory = statistics.median(shares)
            descriptors = max(late.descriptors - early.descriptors for early, late in found)
            good &= memory <= growth.FLAT and descriptors <= 0
            say(
                f"While training, memory of {len(found)} starts that {name} changed by "
                f"{memory:+.1%} in the median (allowed: {growth.FLAT:+.0%}; {min(shares):+.1%} to "
                f"{max(shares):+.1%}), descriptors by at most {descriptors:+.0f}."
            )
    seen = [m for each in rounds if not math.isnan(m := each.steady().memory)]
    if half := len(seen) // 2:
        change = statistics.median(seen[-half:]) / statistics.median(seen[:half]) - 1
        good &= change <= growth.FLAT
        say(f"From the first rounds to the last, memory changed by {change:+.1%}.")
    say("All as it has to be." if good else "NOT as it has to be.")
    return good


@contextlib.contextmanager
def _life(*args, **options) -> Iterator[Life]:
    life = Life(*args, **options)
    try:
        yield life
    finally:
        life.end()


def main() -> None:
    """Parses the flags and soaks; exits with 1 if a check fails."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Single values of the run's config: --config.name=value.",
    )
    add = parser.add_argument
    add("--workdir", required=True, type=Path, help="of the runs; identical ones are removed")
    add("--config", help="a config file (default: a small run of configs/digits.py)")
    add("--kills", type=int, help="minimum number of kills (50; with --minutes: 0)")
    add("--minutes", type=float, default=0, help="minimum duration (0)")
    add("--every", type=float, default=0, help="seconds between kills (0: random times and phases)")
    add("--hosts", type=int, default=1, help="processes per run (1)")
    add("--seed", type=int, default=0, help="of the random times (0)")
    flags, overrides = cli.parse(parser)
    if flags.kills is None:
        flags.kills = 0 if flags.minutes else 50
    if flags.hosts < 1 or flags.kills < 0 or flags.minutes < 0 or flags.every < 0:
        raise UserError("--hosts must be at least 1; --kills, --minutes, --every at least 0.")
    if not flags.kills and not flags.minutes:
        raise UserError("Give --kills or --minutes.")
    given = overrides if flags.config else _SMALL | overrides
    if flags.every:  # so that a start has many periods from save to save
        given = {"checkpoint.every": "25"} | given
    args = [f"--config={flags.config or 'configs/digits.py:runlocal'}"]
    args += [f"--config.{name}={value}" for name, value in given.items()]
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that no run is left behind
    wanted = {name: getattr(flags, name) for name in ("kills", "minutes", "every", "hosts", "seed")}
    if not soak(args, flags.workdir, **wanted, say=lambda line: print(line, flush=True)):
        raise SystemExit(1)


if __name__ == "__main__":
    cli.run(main)
