"""Sides of a benchmark in processes of their own, of which only one works at any moment."""

import importlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from pmjax import cli, errors, plugins
from pmjax.errors import UserError
from pmjax.reporting.progress import progress

BLOCKS = 8  # in which a side's seconds are spent
_PAUSE = 0.2  # seconds after a block: idle threads spin for a while
_TOLD = (
    "first", "compile_s", "start", "device", "gpu", "threads", "versions", "flops", "peak",
    "memory",
)  # fmt: skip


class Process:
    """A side in a process of its own, which works only while it is asked to.

    Attributes:
      about: what the side tells of itself: its attributes `_TOLD`, or None.
    """

    def __init__(self, side: str, kind: str = "Side", *, title: str, **args):
        """Makes `pmjax.peers.SIDE.KIND(**args)` there, and waits until it is ready."""
        spawn = multiprocessing.get_context("spawn")
        self._pipe, theirs = spawn.Pipe()
        self._process = spawn.Process(target=_serve, args=(theirs, side, kind, args), daemon=True)
        self._process.start()
        theirs.close()
        with progress(title, bar_format="{desc} starts …") as bar:
            bar.refresh()
            self.about = self._receive()

    def block(self, seconds: float) -> tuple[int, float, float]:
        """Lets the side work for about so long; returns units, seconds, and those of waiting."""
        self._pipe.send(seconds)
        answer = self._receive()
        time.sleep(_PAUSE)
        return answer

    def _receive(self):
        try:
            kind, value = self._pipe.recv()
        except EOFError:
            self._process.join()
            raise UserError(
                f"A measuring process ended with status {self._process.exitcode}; "
                f"its message is above."
            ) from None
        if kind == "error":
            raise UserError(value)
        return value

    def close(self) -> None:
        """Ends the process."""
        self._pipe.close()
        self._process.join()


def _serve(pipe, side: str, kind: str, args: dict) -> None:
    """Is the process of a side."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # leaves the peer some memory
    cli.run(partial(_work, pipe, side, kind, args))


def _work(pipe, side: str, kind: str, args: dict) -> None:
    try:
        module = importlib.import_module(side if "." in side else f"pmjax.benchmarks.peers.{side}")
        if not hasattr(module, kind):
            raise errors.unknown(f"peer with a {kind}", side, plugins.names("peers"))
        made = getattr(module, kind)(**args)
        pipe.send(("ready", {name: getattr(made, name, None) for name in _TOLD}))
        while True:
            before, seconds = getattr(made, "waited", 0.0), pipe.recv()
            count, spent = made.block(seconds)
            pipe.send(("block", (count, spent, getattr(made, "waited", 0.0) - before)))
    except UserError as error:
        pipe.send(("error", str(error)))
    except (EOFError, KeyboardInterrupt):
        return  # the parent is gone


def in_turn(
    sides: dict[str, Process], *, blocks: int, seconds: float, title: str
) -> dict[str, list[tuple[int, float, float]]]:
    """Lets the sides work in alternate blocks, and ends them.

    Args:
      sides: by name, in the order of their turns.
      blocks: of each side.
      seconds: for which each works.
      title: of the progress bar.

    Returns:
      {side: [(units, seconds, seconds of waiting) of each block]}.
    """
    done = {name: [] for name in sides}
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


def ratio(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """Returns how many times as fast ours is, by pairs of blocks' times: median, low, high."""
    ratios = [their / our for their, our in zip(theirs, ours, strict=True)]
    return {"median": statistics.median(ratios), "low": min(ratios), "high": max(ratios)}


def versus(found: dict[str, Any], peer: str) -> str:
    """Returns a `ratio` in words."""
    return (
        f"pmjax is {found['median']:.2f} times as fast as {peer} "
        f"(pairs of blocks: {found['low']:.2f}-{found['high']:.2f})"
    )


def cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
