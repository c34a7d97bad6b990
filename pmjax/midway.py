"""Evaluation while stage 1 trains: its curves, and the best model so far.

The best is kept in WORKDIR/best, a workdir of its own: `pmjax.load("WORKDIR/best")` and
`python -m pmjax.evaluate --workdir=WORKDIR/best` take it, and train its prior when they need one.
"""

import json
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pmjax import (
    build,
    evals,
    evaluate,
    kept,
    meanings,
    model,
    plugins,
    priors,
    report,
    shortage,
)
from pmjax.datasets import Dataset
from pmjax.errors import UserError, unknown
from pmjax.hosts import Log
from pmjax.report import Report
from pmjax.step import TrainState
from pmjax.workdir import BEST

STAGE = "stage1"
PREFIX = "eval/"  # of these values in history.jsonl and in TensorBoard's events


class Midway:
    """Evaluates the model of stage 1 at some steps, and keeps the best by one of the values.

    What it leaves in history.jsonl goes back and forth with the checkpoints, so that a run that is
    stopped anywhere ends with the same evaluations and the same best model.
    """

    def __init__(
        self,
        settings: ConfigDict,
        workdir: Path,
        *,
        train: Dataset,
        report: Report | Log,
    ):
        """Takes a run's config, directory and training set."""
        self._settings, self._workdir, self._train = settings, workdir, train
        self._report = report
        self._ctx: evals.Context | None = None
        self._model: model.Model | None = None

    def due(self, first: int, last: int) -> bool:
        """Tells whether to evaluate after the steps in (first, last]."""
        every = self._settings.eval.every
        return last == self._settings.steps or first // every != last // every

    def catch_up(self, state: TrainState, step: int) -> None:
        """Evaluates a restored state, if its evaluation was due and did not come to its end."""
        done = max((row["step"] for row in history(self._workdir)), default=0)
        if step > done and self.due(done, step):
            self(state, step)

    def __call__(self, state: TrainState, step: int) -> None:
        """Evaluates a state, which may live on several hosts; logs, and keeps it if it is best.

        Raises:
          UserError: if a metric does not fit, or does not give the value that decides.
        """
        settings, start = self._settings, time.perf_counter()
        with jax.transfer_guard("allow"):
            state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
            ctx = self._context(state)
            args = evaluate.metric_args(settings)
            values = evals.run(settings.eval.during, ctx, say=lambda line: None, **args)
            best = settings.eval.best
            if best and best not in values:
                raise unknown("value (config.eval.best)", best, values)
            is_best = bool(best) and self._is_best(values[best])
            if is_best:
                with shortage.disk("the best model", self._workdir):
                    self._keep(state, step, values)
        seconds = time.perf_counter() - start
        shown = ", ".join(f"{key} {value:.4g}" for key, value in meanings.plain(values).items())
        self._report.say(
            f"{STAGE}: evaluation of step {step} ({seconds:.1f} s): {shown}"
            + (f"; the best {best} so far" if is_best else "")
        )
        self._report.scalars(STAGE, step, {PREFIX + key: value for key, value in values.items()})

    def _context(self, state):
        """Returns the context of a state's model, with the priors that there are by now."""
        settings, shape = self._settings, self._train.data.shape[1:]
        arrays, joint = model.arrays_of(state, shape), settings.schedule == "joint"

        def fit(name: str) -> dict[str, Any]:
            prior = build.prior(settings, name)
            if joint and name == settings.prior:
                return prior.trained(state)
            if hasattr(prior, "take"):
                return prior.take(arrays["params"])
            return prior.fit(self._ctx.embeddings("train"), seed=settings.seed)

        if self._ctx is None:
            game = build.stage1_game(settings, shape)
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
            there = _priors(settings)
            self._ctx = evaluate.context(
                settings,
                model=self._model,
                train=self._train,
                test=build.dataset(settings, "test"),
                priors=tuple(there),
                has_own=settings.prior in there,
            )
        else:
            self._model = self._model.renewed(arrays, fit)
            self._ctx = self._ctx.of_model(self._model)
        return self._ctx

    def _is_best(self, value: float) -> bool:
        name = self._settings.eval.best
        try:
            before = json.loads((self._workdir / BEST / f"{BEST}.json").read_text())
            sign = meanings.direction(name)
            return before["by"] != name or sign * value > sign * before["metrics"][name]
        except (OSError, ValueError, KeyError):  # there is none, or none that can be relied on
            return True

    def _keep(self, state, step, values):
        kept.write(
            self._workdir / BEST,
            self._settings,
            state,
            self._train.data.shape[1:],
            lambda _: self._ctx.embeddings("train"),
            {"step": step, "by": self._settings.eval.best, "metrics": values},
        )


def _priors(settings: ConfigDict) -> list[str]:
    """Returns the priors that there are while stage 1 trains, the run's own first."""
    return [
        name
        for name in dict.fromkeys([settings.prior, *settings.eval.baselines])
        if (settings.schedule == "joint" and name == settings.prior)
        or not priors.is_trained(build.prior(settings, name))
    ]


def require_possible(settings: ConfigDict) -> None:
    """Raises `UserError` for evaluations that a config wants before what they need is there."""
    best, there = settings.eval.best, _priors(settings)
    early = [name for name in settings.eval.during if evals.needs_own_prior(name)]
    if early and settings.prior not in there:
        raise UserError(
            f"config.eval.during has {', '.join(early)}, which needs the run's own prior; stage 2 "
            f"trains '{settings.prior}' when these evaluations are over. Name it in "
            "config.eval.metrics alone, or take --config.schedule=joint."
        )
    name, *parts = best.split("/")
    if best and parts and parts[-1] in plugins.names("priors") and parts[-1] not in there:
        late = parts[-1] in (settings.prior, *settings.eval.baselines)
        why = "stage 2 trains it later" if late else "config.eval.baselines does not name it"
        raise UserError(
            f"config.eval.best={best!r} needs samples of '{parts[-1]}' while stage 1 trains, and "
            f"{why}. Priors that there are then: {', '.join(there) or 'none'}."
        )
    protocols = evaluate.metric_args(settings).get(name, {}).get("protocols")
    if protocols and parts and parts[0] not in protocols:
        raise unknown(f"protocol of metric '{name}' (config.eval.best)", parts[0], protocols)
    if name == "fid" and parts[1:] and parts[1] != settings.eval.inception_variant:
        valid = [settings.eval.inception_variant]
        raise unknown("variant of Inception's input (config.eval.best)", parts[1], valid)


def history(workdir: Path) -> list[dict[str, Any]]:
    """Returns [{'step': …, 'metrics': …}] of the evaluations while a workdir's stage 1 trained."""
    rows = []
    for row in report.history(workdir):
        values = row["values"]
        found = {k.removeprefix(PREFIX): v for k, v in values.items() if k.startswith(PREFIX)}
        if row["stage"] == STAGE and found:
            rows.append({"step": row["step"], "metrics": found})
    return rows
