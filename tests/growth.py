"""Measures whether the memory or the open files of a training process grow.

Each save first returns freed memory to the system, so memory falls and rises again to the level of
training. Therefore whole periods from one save to the next are compared by their peaks, which do
not depend on when sampling starts and stops. Small blocks left in a heap can move the temporaries
of a step into another heap: single starts then differ by a heap (60 MB on digits) in either
direction. A leak shows in all starts, and so in their median.
"""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FLAT = 0.05  # allowed relative growth of memory
ENOUGH = 6  # whole periods needed for a comparison
_SEEN = 3


class Sample(NamedTuple):
    """The state of a process at one time.

    Attributes:
      phase: of the run.
      saved: the newest saved step (-1: none).
      memory: resident bytes.
      descriptors: number of open ones.
    """

    phase: str
    saved: int
    memory: int
    descriptors: int


class Level(NamedTuple):
    """Peak memory in bytes and open descriptors between saves, over some periods."""

    memory: float
    descriptors: float


def measure(pid: int, checkpoints: Path, *, phase: str) -> Iterator[Sample]:
    """Yields a sample of a process, or nothing if it has ended; `checkpoints` are of its stage."""
    with contextlib.suppress(OSError, StopIteration):
        place = Path("/proc") / str(pid)
        lines = (place / "status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        descriptors = len(list((place / "fd").iterdir()))
        steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        yield Sample(phase, max(steps, default=-1), 1024 * memory, descriptors)


def periods(samples: Sequence[Sample]) -> list[Level]:
    """Returns the peak memory and the fewest descriptors of each whole period between two saves.

    Periods before the first save and after the last are not whole. Those with fewer than three
    samples may have been sampled only while saving, when more files are open.
    """
    by_step: dict[int, list[Sample]] = {}
    for sample in samples:
        by_step.setdefault(sample.saved, []).append(sample)
    return [
        Level(max(s.memory for s in each), min(s.descriptors for s in each))
        for each in list(by_step.values())[1:-1]
        if len(each) >= _SEEN
    ]


def ends(samples: Sequence[Sample]) -> tuple[Level, Level] | None:
    """Returns the medians of the first and of the last third of the periods, if there are enough.

    The level of a third is that of its middle, so a leak shows by two thirds of its total size.
    """
    found = periods(samples)
    third = len(found) // 3
    return (_median(found[:third]), _median(found[-third:])) if len(found) >= ENOUGH else None


def share(early: Level, late: Level) -> float:
    """Returns the relative growth of memory."""
    return late.memory / early.memory - 1


def _median(levels: Sequence[Level]) -> Level:
    return Level(*(statistics.median(values) for values in zip(*levels, strict=True)))
