"""The two stages of a run: the autoencoder, then the prior over its embeddings."""

import contextlib
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pmjax import builders, model
from pmjax.datasets.base import Dataset
from pmjax.distributed.mesh import check_batch, make_mesh, spans_processes
from pmjax.distributed.processes import ProcessGroup, Stopped, processes
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.finite import require_finite, require_finite_arrays
from pmjax.methods.base import MethodSpec
from pmjax.priors.base import FittedPrior, SharedPrior, TrainedPrior
from pmjax.reporting.run_log import RunLog
from pmjax.storage import checkpoint, resource_errors
from pmjax.storage.workdir import (
    AUTOENCODER,
    SNAPSHOT,
    fingerprint,
    prior_path,
    read_embeddings,
    training_config,
    write_embeddings,
)
from pmjax.training import periodic_eval, profiler, snapshots
from pmjax.training.loop import train
from pmjax.training.optimizers import Optimizer, stage1_optimizer, stage2_optimizer
from pmjax.training.options import LoopOptions
from pmjax.training.periodic_eval import STAGE1, STAGE2, PeriodicEvaluator, Stage
from pmjax.training.step import TrainState

log = logging.getLogger(__name__)

_EMBEDDING = "The embedding of training example"
_DIVERGED = "Train again with a lower learning rate or clipped gradients, and a new --workdir."


def fit(settings: ConfigDict, workdir: Path, run_log: RunLog, group: ProcessGroup) -> None:
    """Trains what is not trained yet, and writes the model to the workdir.

    All processes train stage 1. The primary one alone embeds the training set and fits the prior,
    unless `config.stage2.devices` spans processes.
    """
    group.run_on_primary("the checks of the evaluations", partial(validate, settings))
    mesh1, mesh2 = make_mesh(settings.devices), make_mesh(settings.stage2.devices)
    check_batch(settings.data.batch_size, mesh1, "config.data.batch_size")
    check_batch(settings.stage2.batch_size, mesh2, "config.stage2.batch_size")
    trained = isinstance(builders.prior(settings), TrainedPrior)
    in_stage2 = trained and settings.schedule == "two_stage"
    spans_hosts = spans_processes(mesh2)
    data = builders.dataset(settings, "train")
    shape = data.data.shape[1:]
    group.run_on_primary("the checks of the data", partial(validate_data, settings, data))
    _require_same_data(
        group.all_gather_object("the training data", data.fingerprint, no_timeout=True)
    )
    for name in data.skipped:
        log.warning("Skipped, as it cannot be read: %s", name)
    log.info(
        f"{settings.data.name}: {len(data.data)} examples of shape {shape}, "
        f"{mesh1.size} × {jax.devices()[0].device_kind}, {settings.parallel}."
    )
    paths = {"directory": workdir / "checkpoints"}
    where: dict[str, Any] = paths | {"run_log": run_log, "group": group}

    def evaluator(stage: Stage, group: ProcessGroup) -> PeriodicEvaluator | None:
        if not settings.eval[f"{stage.prefix}every"]:
            return None
        return PeriodicEvaluator(stage, settings, workdir, train=data, run_log=run_log, group=group)

    def train_own_prior() -> TrainState:
        evaluates = evaluator(STAGE2, group if spans_hosts else ProcessGroup())
        z = read_embeddings(workdir)
        return _train_prior(settings, z, mesh=mesh2, evaluator=evaluates, **where)

    def write_autoencoder() -> None:
        arrays = snapshots.autoencoder_arrays(state, shape)
        checkpoint.write_arrays(workdir / AUTOENCODER, arrays)
        z = model.Model(settings, arrays).encode(data.data)
        require_finite(z, _EMBEDDING, _DIVERGED)
        write_embeddings(workdir, z)

    def write_prior() -> None:
        if in_stage2 and not spans_hosts:
            arrays = snapshots.prior_arrays(settings, train_own_prior())
        elif in_stage2 or settings.schedule == "joint":
            arrays = snapshots.prior_arrays(settings, state)
        else:
            arrays = fit_prior(settings, workdir, settings.prior)
        require_finite_arrays(arrays, f"The prior '{settings.prior}'", _DIVERGED)
        checkpoint.write_arrays(prior_path(workdir, settings.prior), arrays)

    state = _train(
        settings,
        stage1_options(settings),
        builders.stage1_spec(settings, shape),
        stage1_optimizer(settings),
        data.data,
        data.fingerprint,
        mesh=mesh1,
        evaluator=evaluator(STAGE1, group),
        **where,
    )
    group.run_on_primary("the embeddings of the training set", write_autoencoder)
    if in_stage2 and spans_hosts:
        state = train_own_prior()
    group.run_on_primary("the prior", write_prior)


def fit_prior(settings: ConfigDict, workdir: Path, name: str) -> dict[str, Any]:
    """Returns the arrays of a prior on the embeddings that a finished stage 1 has written.

    A trained prior other than the run's own has default hyper-parameters, and is trained as
    `config.stage2` says; its checkpoints are in a directory beside its arrays.

    Raises:
      UserError: for the run's own prior, if it is trained: the training command trains it.
      Stopped: after SIGTERM or Ctrl-C, once the state is saved.
    """
    prior = builders.prior(settings, name)
    if isinstance(prior, SharedPrior):
        return prior.from_stage1(checkpoint.read_arrays(workdir / AUTOENCODER)["params"])
    is_snapshot = (workdir / SNAPSHOT).is_file()  # training never continues there
    if isinstance(prior, TrainedPrior) and name == settings.prior and not is_snapshot:
        raise UserError(
            f"{workdir} has no trained prior '{name}': training has not reached stage 2. Continue "
            f"with the training command: python -m pmjax.main --workdir={workdir} --config=…"
        )
    z = read_embeddings(workdir)
    require_finite(z, _EMBEDDING, _DIVERGED)
    prior.require_embeddings(len(z))
    if isinstance(prior, FittedPrior):
        log.info("Fitting the prior '%s' to %d embeddings.", name, len(z))
        arrays = prior.fit(z, seed=settings.seed)
    else:
        log.info("Training the prior '%s' on %d embeddings.", name, len(z))
        arrays = _train_other_prior(settings, z, name, prior_path(workdir, name).with_suffix(""))
    require_finite_arrays(arrays, f"The prior '{name}'", _DIVERGED)
    return arrays


def validate(settings: ConfigDict) -> None:
    """Raises `UserError` for evaluations, during training or after it, that must fail."""
    periodic_eval.validate(settings)
    runner.validate(settings)


def validate_data(settings: ConfigDict, train: Dataset) -> None:
    """Raises `UserError` for data that are too few to train or to evaluate as the config says."""
    num = len(train.data)
    if num < 2 and settings.method_args.get("batch_norm"):
        raise UserError(
            f"The latent BatchNorm needs at least 2 training examples, not {num}: it encodes a "
            "single one to 0. Add examples, or set --config.method_args.batch_norm=false."
        )
    for name in dict.fromkeys([settings.prior, *settings.eval.baselines]):
        builders.prior(settings, name).require_embeddings(num)
    test = builders.dataset(settings, "test")
    ctx = runner.context(settings, model=None, train=train, test=test, priors=())
    runner.fitting(settings, "metrics", ctx)
    for stage in (STAGE1, STAGE2):
        if settings.eval[f"{stage.prefix}every"]:
            runner.fitting(settings, f"{stage.prefix}during", ctx)


def stage1_options(settings: ConfigDict) -> LoopOptions:
    """Returns how the config trains stage 1."""
    traced = profiler.parse(settings.profile)
    return _options(settings, "stage1", settings, settings.data.batch_size, profile=traced)


def stage2_options(settings: ConfigDict, stage: str = "stage2") -> LoopOptions:
    """Returns how the config trains a prior on embeddings."""
    return _options(settings, stage, settings.stage2, settings.stage2.batch_size)


def _options(
    settings: ConfigDict, stage: str, part: ConfigDict, batch_size: int, **more: Any
) -> LoopOptions:
    return LoopOptions(
        stage=stage,
        steps=part.steps,
        batch_size=batch_size,
        steps_per_dispatch=part.steps_per_dispatch,
        seed=settings.seed,
        ema_decay=settings.ema_decay,
        mode=settings.parallel,
        device_budget=settings.data.device_budget_gb * 1e9,
        checkpoint_every=settings.checkpoint.every,
        keep=settings.checkpoint.keep,
        log_every=settings.log_every,
        skip_nonfinite=settings.skip_nonfinite,
        **more,
    )


def _train_other_prior(
    settings: ConfigDict, z: np.ndarray, name: str, directory: Path
) -> dict[str, Any]:
    """Trains a prior that is not the run's own, in a directory of its own; returns its arrays."""
    checkpoints = directory / "checkpoints"
    with contextlib.closing(RunLog(directory)) as run_log:
        try:
            state = _train_prior(
                settings, z, name, mesh=make_mesh(1), directory=checkpoints, run_log=run_log
            )
        except Stopped as stopped:
            log.warning("%s The same command resumes there.", stopped)
            raise
    return snapshots.prior_arrays(settings, state, name)


def _train_prior(
    settings: ConfigDict, z: np.ndarray, name: str | None = None, **where: Any
) -> TrainState:
    """Trains a prior (None: the config's own) on embeddings z [N, d]."""
    require_finite(z, _EMBEDDING, _DIVERGED)
    options, optimizer = stage2_options(settings, name or "stage2"), stage2_optimizer(settings)
    spec = builders.stage2_spec(settings, name, z=z)
    return _train(settings, options, spec, optimizer, z, fingerprint(z), **where)


def _train(
    settings: ConfigDict,
    options: LoopOptions,
    spec: MethodSpec,
    optimizer: Optimizer,
    data: np.ndarray,
    data_hash: str,
    **where: Any,
) -> TrainState:
    """Runs the loop; an out-of-memory error of the devices names the config keys to change."""
    part, keys = settings, ("config.data.batch_size", "config.optimizer.accumulate")
    if options.stage != "stage1":
        part = settings.stage2
        keys = "config.stage2.batch_size", "config.stage2.optimizer.accumulate"
    with resource_errors.device_memory(
        options.stage,
        batch_size=options.batch_size,
        accumulate=part.optimizer.accumulate,
        devices=where["mesh"].size,
        keys=keys,
    ):
        info = {"config": training_config(settings), "data": data_hash}
        return train(spec, optimizer, data, options, info=info, **where)


def _require_same_data(fingerprints: list[str]) -> None:
    """Raises `UserError` unless all processes have the training data of the primary one."""
    others = [i for i, found in enumerate(fingerprints) if found != fingerprints[0]]
    if others:
        raise UserError(
            f"The training data of {processes(others)} differ from those of process 0. Give all "
            f"hosts the same files (config.data.path, config.data.manual_dir)."
        )
