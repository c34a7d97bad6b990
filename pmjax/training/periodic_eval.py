"""Evaluates models while a stage trains, and keeps the best one.

The best model of stage 1 is in WORKDIR/best, that of stage 2 in WORKDIR/best-prior. Each is a
workdir of its own (`snapshots`).
"""

import dataclasses
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pmjax import builders, model, plugins
from pmjax.datasets.base import Dataset
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError, unknown
from pmjax.evals import registry, runner, tables
from pmjax.evals.context import Context
from pmjax.priors.base import FittedPrior, SharedPrior, TrainedPrior
from pmjax.reporting import history
from pmjax.reporting.run_log import RunLog
from pmjax.storage import resource_errors
from pmjax.storage.workdir import BEST, BEST_PRIOR, read_embeddings
from pmjax.training import snapshots
from pmjax.training.snapshots import Snapshot, of_stage1, of_stage2
from pmjax.training.step import TrainState

log = logging.getLogger(__name__)


def _priors_of_stage1(settings: ConfigDict) -> list[str]:
    """Returns the priors that can be sampled while stage 1 trains, the run's own first."""
    return [
        name
        for name in dict.fromkeys([settings.prior, *settings.eval.baselines])
        if (settings.schedule == "joint" and name == settings.prior)
        or not isinstance(builders.prior(settings, name), TrainedPrior)
    ]


@dataclasses.dataclass(frozen=True)
class Stage:
    """How the evaluations of the two stages differ."""

    name: str  # in logs
    prefix: str  # of its keys in `config.eval`
    folder: str  # of its best model, in the workdir
    fixed: bool  # whether the embeddings stay the same
    priors: Callable[[ConfigDict], list[str]]  # those that can be sampled during the stage
    snapshot: Callable[[ConfigDict, TrainState, tuple[int, ...], Path], Snapshot]


STAGE1 = Stage(
    "stage1",
    "",
    BEST,
    fixed=False,
    priors=_priors_of_stage1,
    snapshot=lambda settings, state, shape, workdir: of_stage1(settings, state, shape),
)
STAGE2 = Stage(
    "stage2",
    "stage2_",
    BEST_PRIOR,
    fixed=True,
    priors=lambda settings: [settings.prior],
    snapshot=lambda settings, state, shape, workdir: of_stage2(settings, state, workdir),
)


class PeriodicEvaluator:
    """Evaluates the model at some steps of a stage, and keeps the best one by a chosen value.

    Its rows in history.jsonl follow the checkpoints, so that a run that is stopped at any point
    ends with the same evaluations and the same best model.
    """

    def __init__(
        self,
        stage: Stage,
        settings: ConfigDict,
        workdir: Path,
        *,
        train: Dataset,
        run_log: RunLog,
        group: ProcessGroup,
    ):
        """Evaluates a stage of a run on the primary process of the group that trains it."""
        self._stage, self._settings, self._workdir = stage, settings, workdir
        self._train, self._run_log, self._group = train, run_log, group
        self._steps = (settings if stage is STAGE1 else settings.stage2).steps
        self._every, self._best = (settings.eval[f"{stage.prefix}{n}"] for n in ("every", "best"))
        self._metrics: tuple[str, ...] = ()  # those of config.eval.during that the data fit
        self._ctx: Context | None = None
        self._model: model.Model | None = None

    def due(self, first: int, last: int) -> bool:
        """Returns whether to evaluate after the steps in (first, last]."""
        return last == self._steps or first // self._every != last // self._every

    def catch_up(self, state: TrainState, step: int) -> None:
        """Evaluates a restored state whose evaluation was due and did not finish."""

        def evaluate_if_missing() -> None:
            rows = history.evaluations(self._workdir)
            done = max((r["step"] for r in rows if r["stage"] == self._stage.name), default=0)
            if step > done and self.due(done, step):
                self._evaluate(state, step)

        self._group.run_on_primary("an evaluation", evaluate_if_missing)

    def __call__(self, state: TrainState, step: int) -> None:
        """Evaluates a state, which may span processes, logs the values, and keeps the best model.

        Raises:
          UserError: if a metric does not fit the data, or does not return the deciding value.
        """
        self._group.run_on_primary("an evaluation", partial(self._evaluate, state, step))

    def _evaluate(self, state: TrainState, step: int) -> None:
        start, best = time.perf_counter(), self._best
        with jax.transfer_guard("allow"):
            shape = self._train.data.shape[1:]
            snapshot = self._stage.snapshot(self._settings, state, shape, self._workdir)
            ctx = self._ctx = self._context(snapshot)
            args = runner.metric_args(self._settings)
            values = runner.run(self._metrics, ctx, args, quiet=True)
            if best and best not in values:
                raise unknown(f"value (config.eval.{self._stage.prefix}best)", best, values)
            is_best = bool(best) and self._is_best(values[best])
            if is_best:
                about = {"step": step, "by": best, "metrics": values}
                folder = self._workdir / self._stage.folder
                fixed = self._stage.fixed
                z = read_embeddings(self._workdir) if fixed else ctx.embeddings("train")
                with resource_errors.disk("the best model", self._workdir):
                    snapshots.write(folder, self._settings, snapshot, z, about)
        seconds = time.perf_counter() - start
        shown = ", ".join(f"{key} {value:.4g}" for key, value in tables.plain(values).items())
        log.info(
            f"{self._stage.name}: evaluation of step {step} ({seconds:.1f} s): {shown}"
            + (f"; the best {best} so far" if is_best else "")
        )
        values = {history.EVAL + key: value for key, value in values.items()}
        self._run_log.scalars(self._stage.name, step, values)

    def _context(self, snapshot: Snapshot) -> Context:
        """Returns the evaluation context of a model; keeps what does not depend on the model."""
        arrays, fit = snapshot.autoencoder, partial(self._fit_prior, snapshot)
        if self._ctx and self._model:
            self._model = self._model.updated(fit, arrays)
            return self._ctx.with_model(self._model, same_autoencoder=self._stage.fixed)
        self._model = model.Model(self._settings, arrays, fit_prior=fit)
        priors = self._stage.priors(self._settings)
        ctx = runner.context(
            self._settings,
            model=self._model,
            train=self._train,
            test=builders.dataset(self._settings, "test"),
            priors=tuple(priors),
            has_own=self._settings.prior in priors,
        )
        self._metrics = runner.fitting(self._settings, f"{self._stage.prefix}during", ctx)
        return ctx

    def _fit_prior(self, snapshot: Snapshot, name: str) -> dict[str, Any]:
        """Returns the arrays of the run's own prior, or fits another one."""
        prior = builders.prior(self._settings, name)
        if snapshot.own_prior and name == self._settings.prior:
            return snapshot.own_prior
        if isinstance(prior, SharedPrior):
            return prior.from_stage1(snapshot.autoencoder["params"])
        assert isinstance(prior, FittedPrior) and self._ctx  # as in `_priors_of_stage1`
        return prior.fit(self._ctx.embeddings("train"), seed=self._settings.seed)

    def _is_best(self, value: float) -> bool:
        before = snapshots.read_about(self._workdir / self._stage.folder)
        if before.get("by") != self._best or self._best not in before.get("metrics", {}):
            return True
        sign = registry.direction(self._best)
        return sign * value > sign * before["metrics"][self._best]


def validate(settings: ConfigDict) -> None:
    """Raises `UserError` for evaluations that need what the stage does not have."""
    if settings.eval.every:
        available = _priors_of_stage1(settings)
        early = [n for n in settings.eval.during if registry.find(n).declaration.needs_own_prior]
        if early and settings.prior not in available:
            raise UserError(
                f"config.eval.during has {', '.join(early)}, which needs the run's own prior. "
                f"Stage 2 trains '{settings.prior}' later. Name it in config.eval.stage2_during, "
                "or set --config.schedule=joint."
            )
        later = (settings.prior, *settings.eval.baselines)
        _require_best(settings, STAGE1, available, "while stage 1 trains", later)
    if settings.eval.stage2_every:
        if settings.schedule == "joint" or not isinstance(builders.prior(settings), TrainedPrior):
            raise UserError(
                f"config.eval.stage2_every={settings.eval.stage2_every} evaluates a prior while "
                f"stage 2 trains it, and there is no such stage with config.schedule="
                f"'{settings.schedule}' and the prior '{settings.prior}'. Set it to 0; "
                "config.eval.every is for stage 1."
            )
        _require_best(settings, STAGE2, [settings.prior], "while stage 2 trains", ())


def _require_best(
    settings: ConfigDict, stage: Stage, available: list[str], when: str, later: tuple[str, ...]
) -> None:
    """Raises `UserError` if the deciding value cannot be computed; `later` are stage 2's priors."""
    best, key = settings.eval[f"{stage.prefix}best"], f"config.eval.{stage.prefix}best"
    name, *parts = best.split("/")
    if parts and parts[-1] in plugins.names("priors") and parts[-1] not in available:
        why = "config.eval.baselines does not name it"
        if parts[-1] in later:
            why = "stage 2 trains it later: config.eval.stage2_best can use it"
        elif stage is STAGE2:
            why = "only the run's own prior is evaluated then"
        raise UserError(
            f"{key}={best!r} needs samples of '{parts[-1]}' {when}, and {why}. "
            f"Available priors: {', '.join(available) or 'none'}."
        )
    protocols = runner.metric_args(settings).get(name, {}).get("protocols")
    if protocols and parts and parts[0] not in protocols:
        raise unknown(f"protocol of metric '{name}' ({key})", parts[0], protocols)
    if name == "fid" and parts[1:] and parts[1] != settings.eval.inception_variant:
        valid = [settings.eval.inception_variant]
        raise unknown(f"variant of Inception's input ({key})", parts[1], valid)
