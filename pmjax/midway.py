"""Evaluation while stage 1 trains: its curves, and the best model so far.

The best is kept in WORKDIR/best, a workdir of its own: `pmjax.load("WORKDIR/best")` and
`python -m pmjax.evaluate --workdir=WORKDIR/best` take it, and train its prior when they need one.
"""

import json
import shutil
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from pmjax import (
    build,
    checkpoint,
    config,
    evals,
    evaluate,
    meanings,
    model,
    priors,
    report,
    shortage,
)
from pmjax.datasets import Dataset
from pmjax.errors import unknown
from pmjax.hosts import Log
from pmjax.report import Report
from pmjax.step import TrainState
from pmjax.workdir import AUTOENCODER, BEST, CONFIG, prior_path, write_embeddings

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
            values = evals.run(settings.eval.during, ctx, say=lambda line: None)
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
            names = dict.fromkeys([settings.prior, *settings.eval.baselines])
            there = [
                name
                for name in names
                if (joint and name == settings.prior)
                or not priors.is_trained(build.prior(settings, name))
            ]
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
        """Writes a workdir that has all that can be had of this state, in place of the last."""
        settings, folder = self._settings, self._workdir / BEST
        fresh = self._workdir / f".{BEST}"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        config.save(settings, fresh / CONFIG)
        arrays = model.arrays_of(state, self._train.data.shape[1:])
        checkpoint.write_arrays(fresh / AUTOENCODER, arrays)
        write_embeddings(fresh, self._ctx.embeddings("train"))
        if settings.schedule == "joint":
            arrays = build.prior(settings).trained(state)
            checkpoint.write_arrays(prior_path(fresh, settings.prior), arrays)
        about = {"step": step, "by": settings.eval.best, "metrics": values}
        (fresh / f"{BEST}.json").write_text(json.dumps(about, indent=2) + "\n")
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)


def history(workdir: Path) -> list[dict[str, Any]]:
    """Returns [{'step': …, 'metrics': …}] of the evaluations while a workdir's stage 1 trained."""
    rows = []
    for row in report.history(workdir):
        values = row["values"]
        found = {k.removeprefix(PREFIX): v for k, v in values.items() if k.startswith(PREFIX)}
        if row["stage"] == STAGE and found:
            rows.append({"step": row["step"], "metrics": found})
    return rows
