"""Evaluation while a stage trains: its curves, and the best model so far.

The best of stage 1 is kept in WORKDIR/best, that of stage 2 in WORKDIR/best-prior, each a workdir
of its own: `pmjax.load("WORKDIR/best")` and `python -m pmjax.evaluate --workdir=WORKDIR/best` take
it, and train its prior when they need one that it does not have.
"""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pmjax import builders, model, plugins
from pmjax.datasets.base import Dataset
from pmjax.distributed.processes import Log, ProcessGroup
from pmjax.errors import UserError, unknown
from pmjax.evals import meanings, runner
from pmjax.evals.context import Context
from pmjax.evals.registry import needs_own_prior
from pmjax.priors.base import SharedPrior, TrainedPrior
from pmjax.reporting import report
from pmjax.reporting.report import Report
from pmjax.storage import checkpoint, resource_errors
from pmjax.storage.workdir import AUTOENCODER, BEST, BEST_PRIOR, read_embeddings
from pmjax.training import snapshots
from pmjax.training.step import TrainState

STAGES = {"stage1": "", "stage2": "stage2_"}  # and the prefix of its keys in config.eval
PREFIX = "eval/"  # of these values in history.jsonl and in TensorBoard's events


class PeriodicEvaluator:
    """Evaluates the model at some steps of a stage, and keeps the best by one of the values.

    What it leaves in history.jsonl goes back and forth with the checkpoints, so that a run that is
    stopped anywhere ends with the same evaluations and the same best model.
    """

    stage: str
    folder: str  # of the best model, in the workdir

    def __init__(
        self,
        settings: ConfigDict,
        workdir: Path,
        *,
        train: Dataset,
        report: Report | Log,
        hosts: ProcessGroup,
    ):
        """Takes a run's config, directory and training set, and those who train: one evaluates."""
        self._settings, self._workdir, self._train = settings, workdir, train
        self._report, self._hosts = report, hosts
        self._steps = {"stage1": settings, "stage2": settings.stage2}[self.stage].steps
        names = (f"{STAGES[self.stage]}{name}" for name in ("every", "during", "best"))
        self._every, self._during, self._best = (settings.eval[name] for name in names)
        self._ctx: Context | None = None
        self._model: model.Model | None = None

    def due(self, first: int, last: int) -> bool:
        """Tells whether to evaluate after the steps in (first, last]."""
        return last == self._steps or first // self._every != last // self._every

    def catch_up(self, state: TrainState, step: int) -> None:
        """Evaluates a restored state, if its evaluation was due and did not come to its end."""

        def make_up() -> None:
            rows = [row for row in history(self._workdir) if row["stage"] == self.stage]
            done = max((row["step"] for row in rows), default=0)
            if step > done and self.due(done, step):
                self._evaluate(state, step)

        self._hosts.run_on_primary("an evaluation", make_up)

    def __call__(self, state: TrainState, step: int) -> None:
        """Evaluates a state, which may live on several hosts; logs, and keeps it if it is best.

        Raises:
          UserError: if a metric does not fit, or does not give the value that decides.
        """
        self._hosts.run_on_primary("an evaluation", partial(self._evaluate, state, step))

    def _evaluate(self, state: TrainState, step: int) -> None:
        start, best = time.perf_counter(), self._best
        with jax.transfer_guard("allow"):
            state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
            ctx = self._context(state)
            args = runner.metric_args(self._settings)
            values = runner.run(self._during, ctx, say=lambda line: None, **args)
            if best and best not in values:
                raise unknown(f"value (config.eval.{STAGES[self.stage]}best)", best, values)
            is_best = bool(best) and self._is_best(values[best])
            if is_best:
                about = {"step": step, "by": best, "metrics": values}
                with resource_errors.disk("the best model", self._workdir):
                    snapshots.write(
                        self._workdir / self.folder, self._settings, *self._parts(state), about
                    )
        seconds = time.perf_counter() - start
        shown = ", ".join(f"{key} {value:.4g}" for key, value in meanings.plain(values).items())
        self._report.say(
            f"{self.stage}: evaluation of step {step} ({seconds:.1f} s): {shown}"
            + (f"; the best {best} so far" if is_best else "")
        )
        values = {PREFIX + key: value for key, value in values.items()}
        self._report.scalars(self.stage, step, values)

    def _context(self, state: TrainState) -> Context:
        """Returns the context of a state's model, with the priors that there are by now."""
        raise NotImplementedError

    def _parts(self, state: TrainState) -> tuple:
        """Returns the arrays, embeddings and prior that `snapshots.write` takes."""
        raise NotImplementedError

    def _first_context(self, names: list[str]) -> Context:
        """Returns the context of the model, with these priors."""
        return runner.context(
            self._settings,
            model=self._model,
            train=self._train,
            test=builders.dataset(self._settings, "test"),
            priors=tuple(names),
            has_own=self._settings.prior in names,
        )

    def _fit(self, name: str, own: dict[str, Any] | None, arrays: dict[str, Any]) -> dict[str, Any]:
        """Returns the arrays of a prior: the run's `own`, if it is there, or a fitted one."""
        prior = builders.prior(self._settings, name)
        if own and name == self._settings.prior:
            return own
        if isinstance(prior, SharedPrior):
            return prior.from_stage1(arrays["params"])
        return prior.fit(self._ctx.embeddings("train"), seed=self._settings.seed)

    def _is_best(self, value: float) -> bool:
        try:
            before = json.loads((self._workdir / self.folder / f"{BEST}.json").read_text())
            sign = meanings.direction(self._best)
            return before["by"] != self._best or sign * value > sign * before["metrics"][self._best]
        except (OSError, ValueError, KeyError):  # there is none, or none that can be relied on
            return True


class AutoencoderEvaluator(PeriodicEvaluator):
    """Evaluates stage 1, with the priors that need no training of their own."""

    stage, folder = "stage1", BEST

    def _context(self, state):
        settings, shape = self._settings, self._train.data.shape[1:]
        arrays, own = model.arrays_of(state, shape), snapshots.own_prior(settings, state)
        fit = partial(self._fit, own=own, arrays=arrays)
        if self._ctx is None:
            game = builders.stage1_game(settings, shape)
            self._model = model.Model(
                encoder=game.nets["E"][0],
                decoder=game.nets["G"][0],
                arrays=arrays,
                shape=shape,
                latent_dim=settings.latent_dim,
                prior=settings.prior,
                prior_args=settings.prior_args.to_dict(),
                fit_prior=fit,
            )
            self._ctx = self._first_context(_priors(settings))
        else:
            self._model = self._model.renewed(fit, arrays)
            self._ctx = self._ctx.of_model(self._model)
        return self._ctx

    def _parts(self, state):
        arrays = model.arrays_of(state, self._train.data.shape[1:])
        own = snapshots.own_prior(self._settings, state)
        return arrays, lambda folder: self._ctx.embeddings("train"), own


class PriorEvaluator(PeriodicEvaluator):
    """Evaluates stage 2: the run's own prior, on the autoencoder that stage 1 has left."""

    stage, folder = "stage2", BEST_PRIOR

    def _context(self, state):
        arrays = checkpoint.read_arrays(self._workdir / AUTOENCODER)
        own = builders.prior(self._settings).export(state)
        fit = partial(self._fit, own=own, arrays=arrays)
        if self._ctx is None:
            self._model = model.load(self._workdir).renewed(fit)
            self._ctx = self._first_context([self._settings.prior])
        else:
            self._model = self._model.renewed(fit)
            self._ctx = self._ctx.of_model(self._model, same_autoencoder=True)
        return self._ctx

    def _parts(self, state):
        arrays = checkpoint.read_arrays(self._workdir / AUTOENCODER)
        own = builders.prior(self._settings).export(state)
        return arrays, lambda folder: read_embeddings(self._workdir), own


def _priors(settings: ConfigDict) -> list[str]:
    """Returns the priors that there are while stage 1 trains, the run's own first."""
    return [
        name
        for name in dict.fromkeys([settings.prior, *settings.eval.baselines])
        if (settings.schedule == "joint" and name == settings.prior)
        or not isinstance(builders.prior(settings, name), TrainedPrior)
    ]


def validate(settings: ConfigDict) -> None:
    """Raises `UserError` for evaluations that a config wants before what they need is there."""
    if settings.eval.every:
        there = _priors(settings)
        early = [name for name in settings.eval.during if needs_own_prior(name)]
        if early and settings.prior not in there:
            raise UserError(
                f"config.eval.during has {', '.join(early)}, which needs the run's own prior; "
                f"stage 2 trains '{settings.prior}' when these evaluations are over. Name it in "
                "config.eval.stage2_during, or take --config.schedule=joint."
            )
        late = (settings.prior, *settings.eval.baselines)
        _require_best(settings, "", there, "while stage 1 trains", late)
    if settings.eval.stage2_every:
        if settings.schedule == "joint" or not isinstance(builders.prior(settings), TrainedPrior):
            raise UserError(
                f"config.eval.stage2_every={settings.eval.stage2_every} evaluates a prior while "
                f"stage 2 trains it, and there is no such stage with config.schedule="
                f"'{settings.schedule}' and the prior '{settings.prior}'. Set it to 0; "
                "config.eval.every is for stage 1."
            )
        _require_best(settings, "stage2_", [settings.prior], "while stage 2 trains", ())


def _require_best(
    settings: ConfigDict, prefix: str, there: list[str], when: str, late: tuple[str, ...]
) -> None:
    """Raises `UserError` if the value that decides cannot be had; `late` are priors that come."""
    best, key = settings.eval[f"{prefix}best"], f"config.eval.{prefix}best"
    name, *parts = best.split("/")
    if parts and parts[-1] in plugins.names("priors") and parts[-1] not in there:
        why = "config.eval.baselines does not name it"
        if parts[-1] in late:
            why = "stage 2 trains it later: config.eval.stage2_best can be of it"
        elif prefix:
            why = "only the run's own prior is evaluated then"
        raise UserError(
            f"{key}={best!r} needs samples of '{parts[-1]}' {when}, and {why}. "
            f"Priors that there are then: {', '.join(there) or 'none'}."
        )
    protocols = runner.metric_args(settings).get(name, {}).get("protocols")
    if protocols and parts and parts[0] not in protocols:
        raise unknown(f"protocol of metric '{name}' ({key})", parts[0], protocols)
    if name == "fid" and parts[1:] and parts[1] != settings.eval.inception_variant:
        valid = [settings.eval.inception_variant]
        raise unknown(f"variant of Inception's input ({key})", parts[1], valid)


def history(workdir: Path) -> list[dict[str, Any]]:
    """Returns [{'stage': …, 'step': …, 'metrics': …}] of a workdir's evaluations in training."""
    rows = []
    for row in report.history(workdir):
        values = row["values"]
        found = {k.removeprefix(PREFIX): v for k, v in values.items() if k.startswith(PREFIX)}
        if row["stage"] in STAGES and found:
            rows.append({"stage": row["stage"], "step": row["step"], "metrics": found})
    return rows
