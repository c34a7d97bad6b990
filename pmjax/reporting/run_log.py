"""The log of a run: every loss and metric to all loggers, and the status line."""

import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TextIO

from pmjax.errors import UserError
from pmjax.reporting import console
from pmjax.reporting.history import History
from pmjax.reporting.progress import Rate, StatusLine, duration
from pmjax.reporting.tensorboard import TensorBoard
from pmjax.storage import resource_errors

log = logging.getLogger(__name__)


class Logger(Protocol):
    """A place that losses and metrics are written to."""

    def resume(self, stage: str, step: int) -> None:
        """Notes at which step a stage begins, and drops what a killed run wrote after it."""

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Writes named values; they are on disk when this returns."""

    def close(self) -> None:
        """Closes what is open; a second call does nothing."""


LOGGERS: tuple[Callable[[Path], Logger], ...] = (History, TensorBoard)


class LogLines:
    """Writes values as log lines."""

    def resume(self, stage: str, step: int) -> None:
        """Logs where a stage begins."""
        log.info("%s: from step %d.", stage, step)

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Logs a row."""
        row = "  ".join(f"{name} {value:.6g}" for name, value in values.items())
        log.info("%s  %d  %s", stage, step, row)

    def close(self) -> None:
        """Does nothing."""


class RunLog:
    """Logs a run in its workdir, continuing where an earlier run ended.

    The first process writes with all `LOGGERS` and shows the status line. Any other appends its
    values and log lines to logs/host-I.log.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        process: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """Opens the loggers; makes the workdir, or raises `UserError` if it cannot be written.

        The status line is on `stream` instead of stderr; `clock` returns seconds.
        """
        self._workdir, self._clock = workdir, clock
        self._loggers: list[Logger] = []
        self._status: StatusLine | None = None
        self._stage, self._step, self._rate = "", 0, Rate(clock)
        if process:
            console.log_to_file(workdir / "logs" / f"host-{process}.log")
            self._loggers = [LogLines()]
            return
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            self._loggers = [logger(workdir) for logger in LOGGERS]
        except OSError as error:
            raise UserError(
                f"Cannot write in workdir '{workdir}': {error.strerror}. "
                "Choose another with --workdir, or change its permissions."
            ) from error
        self._status = StatusLine(stream, clock=clock)

    def resume(self, stage: str, step: int) -> None:
        """Begins a stage at this step, that of its last checkpoint."""
        for logger in self._loggers:
            logger.resume(stage, step)

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Writes named values, such as {"loss/critic": 0.25}.

        Raises:
          NoSpace: if the disk is full; values on disk stay as they are.
        """
        values = {name: float(value) for name, value in values.items()}
        still_intact = "Checkpoints are intact."
        with resource_errors.disk("losses and metrics", self._workdir, still_intact=still_intact):
            for logger in self._loggers:
                logger.scalars(stage, int(step), values)

    def status(self, stage: str, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Shows step of steps, steps/s over the last 30 s, time left and losses.

        A stage's first call starts its clock: call it after the first dispatch, which compiles.
        """
        if self._status is None:
            return
        if stage != self._stage or step < self._step:
            self._rate = Rate(self._clock)
        self._stage, self._step = stage, step
        self._rate.add(step)
        last = step >= steps
        if not self._status.due(last=last):
            return
        parts = [stage, f"{step}/{steps}", f"{100 * step / max(steps, 1):.0f}%"]
        if rate := self._rate():
            parts += [f"{rate:.3g} steps/s" if rate < 100 else f"{rate:.0f} steps/s"]
            parts += [f"ETA {duration((steps - step) / rate)}"]
        parts += [f"{name.removeprefix('loss/')} {float(v):.4g}" for name, v in values.items()]
        self._status.show(parts, last=last)

    def close(self) -> None:
        """Ends the status line and closes the loggers; a second call does nothing."""
        if self._status:
            self._status.close()
        for logger in self._loggers:
            with contextlib.suppress(OSError):  # a full disk, which `scalars` has reported
                logger.close()
