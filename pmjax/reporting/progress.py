"""Progress on the console: the status line of a run, and bars for work on data."""

import collections
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import TextIO

from tqdm import tqdm

from pmjax.reporting import console

WINDOW = 30.0  # seconds over which a rate is averaged
LIVE_EVERY, PLAIN_EVERY = 0.1, 10.0  # seconds between status lines, on a terminal and elsewhere


def progress(title: str, total: int | None = None, *, unit: str = " images", **kwargs) -> tqdm:
    """Returns a progress bar on stderr with rate and time left, hidden for the first second."""
    stream = console.steady(sys.stderr)
    interval = LIVE_EVERY if stream.isatty() else PLAIN_EVERY
    return tqdm(total=total, desc=title, unit=unit, file=stream, delay=1, leave=False,
                mininterval=interval, miniters=1, **kwargs)  # fmt: skip


class StatusLine:
    """One line that redraws itself on a terminal; elsewhere a plain line at intervals."""

    def __init__(
        self,
        stream: TextIO | None = None,
        *,
        every: float = PLAIN_EVERY,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Opens no line yet; `every` is the interval in seconds where there is no terminal."""
        self._stream = console.steady(sys.stderr if stream is None else stream)
        self._live = self._stream.isatty()
        self._every = LIVE_EVERY if self._live else every
        self._clock, self._shown = clock, -math.inf
        self._bar: _Bar | None = None

    def due(self, *, last: bool = False) -> bool:
        """Returns whether to show a line now; the last one always is."""
        return self._clock() - self._shown >= self._every or last

    def show(self, parts: Sequence[str], *, last: bool = False) -> None:
        """Shows the parts; on a terminal, as many as fit, so that no number is cut in two.

        The last line stays on the terminal, as a record.
        """
        self._shown = self._clock()
        if not self._live:
            self._stream.write("  ".join(parts) + "\n")
            self._stream.flush()
            return
        if self._bar is None:
            self._bar = _Bar(file=self._stream, dynamic_ncols=True)
        self._bar.parts = parts
        if last:
            self.close()
        else:
            self._bar.refresh()

    def close(self, *, leave: bool = True) -> None:
        """Ends the line, which stays on the terminal or is cleared."""
        if self._bar is not None:
            self._bar.leave = leave
            self._bar.close()
            self._bar = None


class _Bar(tqdm):
    """A line of our own words, which tqdm draws, clears and puts back below log lines."""

    parts: Sequence[str] = ()

    def __str__(self) -> str:
        columns = self.format_dict["ncols"] or 0
        line, width = "", columns if columns > 0 else 79  # tqdm has -1 for a terminal of size 0
        for part in self.parts:
            longer = f"{line}  {part}" if line else part
            if len(longer) > width:
                return line or longer[:width]  # not even the first part fits
            line = longer
        return line


class Rate:
    """Steps per second over the last `WINDOW` seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self._marks: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, step: int) -> None:
        """Notes when a step was reached."""
        now = self._clock()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()

    def __call__(self) -> float:
        """Returns the rate, 0 if it is not known yet."""
        (start, first), (end, last) = self._marks[0], self._marks[-1]
        return (last - first) / (end - start) if end > start else 0.0


def duration(seconds: float) -> str:
    """Returns seconds in the largest two units, such as 1h05m."""
    minutes, left = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{left:02d}s" if minutes else f"{left}s"
