"""A trace of some steps: --config.profile=STEP:COUNT."""

from pathlib import Path
from typing import Any

import jax

from pmjax.errors import UserError


def parse(text: str) -> tuple[int, int] | None:
    """Returns the first step to trace and how many, from 'STEP:COUNT'; None for ''.

    Raises:
      UserError: for anything else.
    """
    if not text:
        return None
    first, _, count = text.partition(":")
    if not (first.isdigit() and count.isdigit() and int(count)):
        raise UserError(f"config.profile='{text}' must be STEP:COUNT, such as 100:5.")
    return int(first), int(count)


class Profiler:
    """Traces the dispatches that hold the wanted steps, for TensorBoard and Perfetto."""

    def __init__(self, wanted: tuple[int, int] | None, directory: Path):
        """Takes what `parse` returned; the trace is written below the directory."""
        self._wanted, self._directory, self._running = wanted, directory, False

    def before(self, first: int, last: int) -> None:
        """Starts at the dispatch of steps [first, last) that comes to the wanted ones."""
        if self._wanted and not self._running and first <= self._wanted[0] < last:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, last: int, results: Any) -> bool:
        """Stops behind the last wanted step, when its results are there; returns whether it did."""
        if not self._running or last < sum(self._wanted):
            return False
        jax.block_until_ready(results)
        self.close()
        self._wanted = None
        return True

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
