"""Runs each side of a benchmark in its own process, one at a time, and compares their times."""

import dataclasses
import importlib
import multiprocessing
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

from pmjax.datasets.decode_pool import cores
from pmjax.errors import UserError
from pmjax.reporting import console
from pmjax.reporting.progress import progress
from pmjax.storage import resource_errors

BLOCKS = 8  # alternating blocks per side
PAUSE = 0.2  # seconds after a block: idle threads keep spinning for a while


@dataclasses.dataclass(frozen=True, kw_only=True)
class About:
    """Describes a side once it is ready."""

    first: Any  # the result of the first step or batch, which the sides compare
    device: str
    threads: int
    versions: dict[str, str]  # of packages
    compile_s: float | None = None  # None: nothing is compiled
    gpu: bool = False
    start: dict[str, Any] = dataclasses.field(default_factory=dict)  # what the peer starts from
    flops: float = 0.0  # per step, by XLA's count
    peak: float = 0.0  # FLOP/s of large matrix products on the same devices
    memory: int = 0  # bytes per device that the compiled step needs

    def environment(self) -> dict[str, Any]:
        """Returns what bench's JSON says about the side besides its times."""
        keys = ("compile_s", "device", "threads", "versions")
        return {key: getattr(self, key) for key in keys}


class Block(NamedTuple):
    """The work of one block."""

    units: int  # steps, images or distances
    seconds: float
    waited: float = 0.0  # seconds spent waiting for data


class Side(Protocol):
    """What a process runs: an implementation of the work to measure."""

    about: About

    def block(self, seconds: float) -> Block:
        """Works for about this long, at least one unit."""


class Process:
    """A side in its own process, which works only on request."""

    about: About  # the side's description of itself

    def __init__(self, module: str, kind: str, *, title: str, **args: Any):
        """Starts `MODULE.KIND(**args)` in a new process and waits until it is ready."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, child = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(child, module, kind, args), daemon=True)
        self._process.start()
        child.close()
        with progress(title, bar_format="{desc} starts …") as bar:
            bar.refresh()
            self.about = self._receive()

    def block(self, seconds: float) -> Block:
        """Lets the side work for about this long."""
        self._pipe.send(seconds)
        block = self._receive()
        time.sleep(PAUSE)
        return block

    def _receive(self) -> Any:
        try:
            message = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"A measuring process ended with status {self._process.exitcode}; "
                "its message is above."
            ) from None
        if isinstance(message, UserError):
            raise message
        return message

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def start(kind: str, *, peer: str | None, title: str, **args: Any) -> dict[str, Process]:
    """Starts our implementation of `kind`, then the peer's, if any, on the same device."""
    ours = Process("pmjax.benchmarks.ours", kind, **args, title=f"{title}: pmjax")
    if not peer:
        return {"pmjax": ours}
    args |= {"gpu": ours.about.gpu, "cores": cores()}
    if ours.about.start:
        args["start"] = ours.about.start
    module = f"pmjax.benchmarks.peers.{peer}"
    return {"pmjax": ours, peer: Process(module, kind, **args, title=f"{title}: {peer}")}


def _serve(pipe: Connection, module: str, kind: str, args: dict[str, Any]) -> None:
    """Makes the side, and answers requests until the pipe is closed."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves memory for the peer
    warnings.filterwarnings("ignore", category=FutureWarning)
    console.setup()
    try:
        with resource_errors.as_user_errors():
            make = vars(importlib.import_module(module)).get(kind)
            if make is None:
                raise UserError(f"The peer '{module.rpartition('.')[2]}' defines no {kind}.")
            side: Side = make(**args)
            pipe.send(side.about)
            while True:
                pipe.send(side.block(pipe.recv()))
    except UserError as error:
        pipe.send(UserError(str(error)))
    except (EOFError, KeyboardInterrupt):
        return  # the parent has closed the pipe or ended


def repeat(
    work: Callable[[], object],
    seconds: float,
    *,
    units: int = 1,
    finish: Callable[[], object] | None = None,
) -> Block:
    """Calls `work`, of so many units, for about this long and at least once.

    `finish` waits for asynchronous work.
    """
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < seconds:
        work()
        calls += 1
    if finish:
        finish()
    return Block(units * calls, time.perf_counter() - began)


def alternate(
    sides: dict[str, Process], *, blocks: int, seconds: float, title: str
) -> dict[str, list[Block]]:
    """Lets the sides work in alternating blocks, `seconds` each in all; ends them.

    Returns:
      The blocks of each side.
    """
    done: dict[str, list[Block]] = {name: [] for name in sides}
    with progress(title, blocks * len(sides), unit=" blocks") as bar:
        for _ in range(blocks):
            for name, side in sides.items():
                done[name].append(side.block(seconds / blocks))
                bar.update()
    for side in sides.values():
        side.close()
    return done


def spread(name: str, values: Sequence[float]) -> dict[str, float]:
    """Returns median, lowest and highest as name, name_low, name_high."""
    return {
        name: statistics.median(values),
        f"{name}_low": min(values),
        f"{name}_high": max(values),
    }


def ratio(peer: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Returns how many times as fast ours is, by pairs of blocks' times: median, low, high."""
    ratios = [theirs / own for theirs, own in zip(peer, ours, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def describe_ratio(found: dict[str, Any], peer: str) -> str:
    """Returns a `ratio` as text."""
    return (
        f"pmjax is {found['median']:.2f} times as fast as {peer} "
        f"(pairs of blocks: {found['low']:.2f}-{found['high']:.2f})"
    )


def columns(side: dict[str, Any], key: str, form: str) -> str:
    """Returns the `spread` of a side as two columns of a table: median, lowest-highest."""
    between = f"{side[f'{key}_low']:.3g}-{side[f'{key}_high']:.3g}"
    return f"{side[key]:10{form}}  {between:>16}"


def compile_column(side: dict[str, Any]) -> str:
    """Returns the seconds that a side compiled, if it did, as a column of a table."""
    seconds = side["compile_s"]
    return f"{'' if seconds is None else f'{seconds:.1f}':>11}"
