"""Whether a process that trains takes more and more memory, or leaves more and more files open.

Each save first gives back what was freed, so that memory falls then and rises again to what
training needs. So whole periods are compared, from one save to the next, by their peaks: no matter
when measuring began and ended, nor which part of a period a sample met. Small blocks that stay in a
heap can push the temporaries of a step into another one: single starts then differ by a heap (60 MB
on digits), up or down, by chance. A leak shows in all starts of a kind, and so in their median.
"""

import contextlib
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

FLAT = 0.05  # share by which memory may grow
ENOUGH = 6  # whole periods, to tell
_SEEN = 3


class Sample(NamedTuple):
    """What a process has at a moment.

    Attributes:
      phase: what it does.
      saved: the newest step that was saved (-1: none).
      memory: bytes, resident.
      descriptors: that are open.
    """

    phase: str
    saved: int
    memory: int
    descriptors: int


class Level(NamedTuple):
    """Memory at its peaks, in bytes, and open descriptors between saves, over some periods."""

    memory: float
    descriptors: float


def measure(pid: int, checkpoints: Path, *, phase: str) -> Iterator[Sample]:
    """Yields a sample of a process, or none if it is gone; `checkpoints` are of its stage."""
    with contextlib.suppress(OSError, StopIteration):
        place = Path("/proc") / str(pid)
        lines = (place / "status").read_text().splitlines()
        memory = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
        descriptors = len(list((place / "fd").iterdir()))
        steps = [int(path.name) for path in checkpoints.glob("*") if path.name.isdigit()]
        yield Sample(phase, max(steps, default=-1), 1024 * memory, descriptors)


def periods(samples: Sequence[Sample]) -> list[Level]:
    """Returns the most memory and the fewest descriptors of each whole period between two saves.

    What comes before the first save, and behind the last, is not whole; and periods of less than
    three samples may have been seen while saving only, when more files are open.
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

    As the level of a third is its middle's, a leak shows by two thirds of what it takes in all.
    """
    found = periods(samples)
    third = len(found) // 3
    return (_median(found[:third]), _median(found[-third:])) if len(found) >= ENOUGH else None


def share(early: Level, late: Level) -> float:
    """Returns the share by which memory has grown."""
    return late.memory / early.memory - 1


def _median(levels: Sequence[Level]) -> Level:
    return Level(*(statistics.median(values) for values in zip(*levels, strict=True)))
