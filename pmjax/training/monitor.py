"""Logs the metrics of training steps, stops on NaN, and warns of saturated objectives."""

import logging
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from pmjax.finite import NotFinite
from pmjax.reporting.run_log import RunLog
from pmjax.training.options import LoopOptions

log = logging.getLogger(__name__)

WINDOW = 100  # steps; an objective whose gradient is small in most of them is saturated
SMALL = 1e-3  # of the largest gradient so far; in healthy runs the ratio stays above 0.017
_BLOCK = 10  # steps over which the largest gradient is a median, so that one outlier does not count


class MetricsMonitor:
    """Reads the metrics of every step of a stage, in order.

    A non-finite loss or gradient ends the training, or is counted if the step was skipped. An
    objective whose gradient has almost vanished (a critic that wins by every margin, or whose units
    are dead) is logged once for each such stretch. The test compares medians of gradient norms, so
    it suits losses of any scale. It starts anew in each process. `skipped` counts the steps skipped
    so far; `saved` is the step of the newest checkpoint (0: none).
    """

    def __init__(
        self,
        options: LoopOptions,
        objectives: Sequence[str],
        run_log: RunLog,
        *,
        skipped: int = 0,
        saved: int = 0,
    ):
        """Monitors objectives by name; values go to the run log."""
        self._options, self._objectives, self._run_log = options, objectives, run_log
        self._keys = "config" if options.stage == "stage1" else "config.stage2"
        self.skipped, self.saved = skipped, saved
        self._rows = {name: np.empty((0, 3)) for name in objectives}
        self._largest = dict.fromkeys(objectives, 0.0)
        self._saturated = dict.fromkeys(objectives, False)

    def counts(self) -> dict[str, int]:
        """Returns what checkpoints record: the number of skipped steps, if there are any."""
        return {"skipped": self.skipped} if self.skipped else {}

    def update(self, first: int, metrics: Mapping[str, jax.Array]) -> None:
        """Reads the metrics of a finished dispatch: arrays [K] for the steps after `first`.

        Raises:
          NotFinite: for the first non-finite step that may not be skipped; names the loss, or the
            objective whose gradient it is.
        """
        arrays = {name: np.asarray(values) for name, values in jax.device_get(metrics).items()}
        skipped = arrays.pop("skipped", np.zeros(1)) > 0
        bad = skipped | ~np.all([np.isfinite(values) for values in arrays.values()], axis=0)
        steps = np.arange(first + 1, first + len(bad) + 1)
        stage, last = self._options.stage, self._options.steps
        logged = (steps % self._options.log_every == 0) | (steps == last)
        for index in np.flatnonzero(bad | logged):
            step = int(steps[index])
            values = {name: float(array[index]) for name, array in arrays.items()}
            if bad[index]:
                self._count_skipped(step, values)
            if logged[index]:
                count = {"skipped": self.skipped} if self._options.skip_nonfinite else {}
                self._run_log.scalars(stage, step, values | count)
        for name in self._objectives:
            columns = steps, arrays[f"grad_norm/{name}"], arrays[f"loss/{name}"]
            self._check_saturation(name, np.stack(columns, axis=1)[~bad])
        losses = {n: float(a[-1]) for n, a in arrays.items() if n.startswith("loss/")}
        self._run_log.status(stage, first + len(bad), last, losses | self.counts())

    def _count_skipped(self, step: int, values: Mapping[str, float]) -> None:
        """Counts a skipped step, or raises `NotFinite` if it is one too many."""
        stage, cause, limit = self._options.stage, self._cause(values), self._options.skip_nonfinite
        if self.skipped < limit:
            self.skipped += 1
            log.warning(
                f"{stage}: step {step} is skipped: {cause} ({self.skipped} of {limit} such steps)."
            )
            return
        valid = f"The checkpoint of step {self.saved} is valid"
        saved = valid if self.saved else "No checkpoint is saved yet"
        raise NotFinite(
            f"{stage}: {cause} at step {step}. {saved}. Lower the learning rate or clip "
            f"gradients (--{self._keys}.optimizer.clip=1.0), with a new --workdir. Or repeat the "
            f"same command with --config.skip_nonfinite={max(10, 2 * limit)}, which "
            f"skips up to that many such steps."
        )

    def _cause(self, values: Mapping[str, float]) -> str:
        """Describes the first non-finite value, in the order in which objectives are updated."""
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        terms = [name for name in bad if not name.startswith(("loss/", "grad_norm/"))]
        for name in self._objectives:
            loss, norm = values[f"loss/{name}"], values[f"grad_norm/{name}"]
            if not np.isfinite(loss):
                return f"loss/{name} is {loss}" + (f" (and {', '.join(terms)})" if terms else "")
            if not np.isfinite(norm):
                return (
                    f"the gradient of objective '{name}' is not finite (its norm is {norm}, its "
                    f"loss {loss:.4g})"
                )
        return f"{terms[0]} is {values[terms[0]]}" if terms else "the updated state is not finite"

    def _check_saturation(self, name: str, rows: np.ndarray) -> None:
        """Warns if an objective saturates; rows are [steps, 3]: step, gradient norm, loss."""
        rows = np.concatenate([self._rows[name], rows])
        while len(rows) >= WINDOW:
            window, rows = rows[:WINDOW], rows[WINDOW:]
            blocks = np.median(window[:, 1].reshape(-1, _BLOCK), axis=1)
            self._largest[name] = largest = max(blocks.max(), self._largest[name])
            norm = np.median(window[:, 1])
            saturated = norm <= SMALL * largest
            if saturated and not self._saturated[name]:
                log.warning(
                    f"{self._options.stage}: objective '{name}' is saturated: in steps "
                    f"{window[0, 0]:.0f} to {window[-1, 0]:.0f} its gradient almost vanished "
                    f"(median norm {norm:.3g}, largest before {largest:.3g}; its loss is now "
                    f"{window[-1, 2]:.4g}). It no longer learns, and the other objectives learn "
                    f"little from it. Lower the learning rate, warm it up "
                    f"(--{self._keys}.optimizer.warmup=200), or update this objective less often."
                )
            self._saturated[name] = saturated
        self._rows[name] = rows
