"""What the training loop reads from its steps: what to log, what is not finite, who is at rest."""

from collections.abc import Mapping, Sequence

import jax
import numpy as np

from pmjax.distributed.processes import Log
from pmjax.finite import NotFinite
from pmjax.reporting.report import Report

REST = 100  # steps; if a objective's gradient is small in most of so many, the objective is at rest
SMALL = 1e-3  # share of the largest before; healthy runs have stayed above 0.017
_BLOCK = 10  # steps whose median tells how large a gradient was, so that a leap does not


class MetricsMonitor:
    """Reads the metrics of every step of a stage, in order.

    A loss or a gradient that is not finite ends the training, or is counted if the step left it
    out. A objective whose gradient has all but vanished (a critic that has won by all margins, one
    whose units are dead) is named in one line for each such stretch. That compares medians of
    gradients' norms, so it suits losses of any scale; it starts afresh in each process.

    Attributes:
      skipped: steps left out so far.
      saved: the step of the newest checkpoint (0: none).
    """

    def __init__(
        self,
        stage: str,
        objectives: Sequence[str],
        *,
        steps: int,
        log_every: int,
        report: Report | Log,
        skip: int = 0,
        skipped: int = 0,
        saved: int = 0,
    ):
        """Takes who plays, and how many steps may be left out, of which `skipped` are."""
        self._stage, self._players, self._steps = stage, objectives, steps
        self._part = "config" if stage == "stage1" else "config.stage2"
        self._log_every, self._report, self._skip = log_every, report, skip
        self.skipped, self.saved = skipped, saved
        self._rows = {objective: np.empty((0, 3)) for objective in objectives}
        self._largest = dict.fromkeys(objectives, 0.0)
        self._resting = dict.fromkeys(objectives, False)

    def update(self, first: int, metrics: Mapping[str, jax.Array]) -> None:
        """Takes a finished dispatch's metrics: arrays [K] for the steps after `first`.

        Raises:
          NotFinite: for the first step that is not finite and may not be left out; names the loss
            or whose gradient it is.
        """
        metrics = {name: np.asarray(values) for name, values in jax.device_get(metrics).items()}
        left_out = metrics.pop("skipped", None)
        bad = ~np.all([np.isfinite(values) for values in metrics.values()], axis=0)
        bad = bad if left_out is None else bad | (left_out > 0)
        steps = np.arange(first + 1, first + len(bad) + 1)
        for index in np.flatnonzero(bad | (steps % self._log_every == 0) | (steps == self._steps)):
            step = int(steps[index])
            values = {name: float(array[index]) for name, array in metrics.items()}
            if bad[index]:
                self._not_finite(step, values)
            if step % self._log_every == 0 or step == self._steps:
                count = {"skipped": self.skipped} if self._skip else {}
                self._report.scalars(self._stage, step, values | count)
        for objective in self._players:
            columns = steps, metrics[f"grad_norm/{objective}"], metrics[f"loss/{objective}"]
            self._compare(objective, np.stack(columns, axis=1)[~bad])
        latest = {name: float(v[-1]) for name, v in metrics.items() if name.startswith("loss/")}
        if self.skipped:
            latest["skipped"] = self.skipped
        self._report.status(self._stage, first + len(bad), self._steps, latest)

    def _not_finite(self, step: int, values: dict[str, float]) -> None:
        cause = self._cause(values)
        if self.skipped < self._skip:
            self.skipped += 1
            self._report.say(
                f"{self._stage}: step {step} is left out, as {cause} "
                f"({self.skipped} of {self._skip} such steps)."
            )
            return
        kept = (
            f"The checkpoint of step {self.saved} is good"
            if self.saved
            else "No checkpoint is saved yet"
        )
        raise NotFinite(
            f"{self._stage}: {cause} at step {step}. {kept}. Lower the learning rate or clip "
            f"gradients (--{self._part}.optimizer.clip=1.0), with a new --workdir; or go on with "
            f"the same command and --config.skip_nonfinite={max(10, 2 * self._skip)}, which leaves "
            f"so many such steps out."
        )

    def _cause(self, values: dict[str, float]) -> str:
        """Returns in words what came first, in the order of the objectives' turns."""
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        terms = [name for name in bad if not name.startswith(("loss/", "grad_norm/"))]
        for objective in self._players:
            loss = f"loss/{objective}"
            if loss in bad:
                more = f" (and {', '.join(terms)})" if terms else ""
                return f"{loss} is {values[loss]}{more}"
            if f"grad_norm/{objective}" in bad:
                norm = values[f"grad_norm/{objective}"]
                return (
                    f"the gradient of objective '{objective}' is not finite (its norm is {norm}, its "
                    f"loss {values[loss]:.4g})"
                )
        if terms:
            return f"{terms[0]} is {values[terms[0]]}"
        return "what the step would have left is not finite"

    def _compare(self, objective: str, rows: np.ndarray) -> None:
        """Takes a objective's [steps, 3] numbers of steps, norms of its gradient, and losses."""
        rows = np.concatenate([self._rows[objective], rows])
        while len(rows) >= REST:
            part, rows = rows[:REST], rows[REST:]
            blocks = np.median(part[:, 1].reshape(-1, _BLOCK), axis=1)
            self._largest[objective] = largest = max(blocks.max(), self._largest[objective])
            norm = np.median(part[:, 1])
            rests = norm <= SMALL * largest
            if rests and not self._resting[objective]:
                self._report.say(
                    f"Warning: {self._stage}: objective '{objective}' is saturated: in steps "
                    f"{part[0, 0]:.0f} to {part[-1, 0]:.0f} its gradient all but vanished (median "
                    f"norm {norm:.3g}, before {largest:.3g}; its loss is now {part[-1, 2]:.4g}). "
                    f"It no longer learns, and the others learn little from it: lower the "
                    f"learning rate, let it begin small (--{self._part}.optimizer.warmup=200), or "
                    f"lower its repeats."
                )
            self._resting[objective] = rests
        self._rows[objective] = rows
