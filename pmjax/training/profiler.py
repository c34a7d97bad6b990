"""Traces some training steps for TensorBoard and Perfetto: --config.profile=STEP:COUNT."""

import logging
from pathlib import Path
from typing import Any

import jax

log = logging.getLogger(__name__)


def parse(text: str) -> tuple[int, int] | None:
    """Returns the first step to trace and the number of steps, from 'STEP:COUNT'; None for ''."""
    first, _, count = text.partition(":")
    return (int(first), int(count)) if text else None


class Profiler:
    """Traces the dispatches that contain the requested steps."""

    def __init__(self, steps: tuple[int, int] | None, directory: Path):
        """Traces the steps that `parse` returned, and writes below the directory."""
        self._steps, self._directory, self._running = steps, directory, False

    def before(self, first: int, last: int) -> None:
        """Starts the trace if the dispatch of steps [first, last) contains the first step."""
        if self._steps and not self._running and first <= self._steps[0] < last:
            jax.profiler.start_trace(str(self._directory), create_perfetto_trace=True)
            self._running = True

    def after(self, last: int, results: Any) -> None:
        """Stops the trace after the last step, once the results are computed."""
        if self._running and self._steps and last >= sum(self._steps):
            jax.block_until_ready(results)
            self.close()
            self._steps = None
            log.info("Traced up to step %d; see %s.", last, self._directory)

    def close(self) -> None:
        """Ends a trace that is still running."""
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
