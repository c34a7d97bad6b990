"""Both stages of a run, and the loop that trains either."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pmjax import builders, model
from pmjax.datasets.batches import batch_indices, stream
from pmjax.distributed import collectives
from pmjax.distributed.compile import compile_step
from pmjax.distributed.host_memory import free_memory
from pmjax.distributed.mesh import (
    check_batch,
    local_rows,
    make_mesh,
    place_dataset,
    replicate,
    spans_processes,
)
from pmjax.distributed.processes import Log, ProcessGroup, Stopped, processes
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.finite import NotFinite, require_finite, require_finite_arrays
from pmjax.methods.base import MethodSpec
from pmjax.priors.base import SharedPrior, TrainedPrior
from pmjax.reporting.report import Report
from pmjax.storage import checkpoint, resource_errors
from pmjax.storage import workdir as workdirs
from pmjax.storage.checkpoint import Checkpoints
from pmjax.storage.workdir import (
    AUTOENCODER,
    BEST,
    prior_path,
    read_embeddings,
    training_config,
    write_embeddings,
)
from pmjax.training import periodic_eval, profiler
from pmjax.training.monitor import MetricsMonitor
from pmjax.training.step import TrainState, init_state, train_step

_EMBEDDING = "The embedding of training example"
_DIVERGED = "Train again with a lower learning rate or clipped gradients, and a new --workdir."


def fit(settings: ConfigDict, workdir: Path, report: Report | Log, hosts: ProcessGroup) -> None:
    """Trains what is not trained yet, and leaves the model in the workdir.

    All hosts train stage 1. The first alone encodes the training set and fits the prior, unless
    the config gives stage 2 all devices too.
    """
    hosts.run_on_primary("what evaluations need", partial(runner.validate, settings))
    mesh = make_mesh(settings.devices)
    check_batch(settings.data.batch_size, mesh, "config.data.batch_size")
    stage2 = settings.stage2
    mesh2 = make_mesh(stage2.devices)
    check_batch(stage2.batch_size, mesh2, "config.stage2.batch_size")
    data = builders.dataset(settings, "train")
    _check_same(hosts.all_gather_object("the training data", data.fingerprint, patient=True))
    for name in data.skipped:
        report.say(f"Left out, cannot be read: {name}")
    report.say(
        f"{settings.data.name}: {len(data.data)} examples of shape {data.data.shape[1:]}, "
        f"{mesh.size} × {jax.devices()[0].device_kind}, {settings.parallel}."
    )
    common = dict(directory=workdir / "checkpoints", report=report, hosts=hosts)
    told = dict(settings=settings, workdir=workdir, train=data, report=report)
    evaluation = (
        periodic_eval.AutoencoderEvaluator(**told, hosts=hosts) if settings.eval.every else None
    )
    with resource_errors.device_memory(
        "stage1",
        batch_size=settings.data.batch_size,
        accumulate=settings.optimizer.accumulate,
        keys=("config.data.batch_size", "config.optimizer.accumulate"),
    ):
        state = train(
            stage="stage1",
            game=builders.stage1_game(settings, data.data.shape[1:]),
            data=data.data,
            steps=settings.steps,
            batch_size=settings.data.batch_size,
            steps_per_dispatch=settings.steps_per_dispatch,
            mesh=mesh,
            info={"config": training_config(settings), "data": data.fingerprint},
            traced=profiler.parse(settings.profile),
            evaluation=evaluation,
            **_common(settings),
            **common,
        )

    def embed() -> None:
        checkpoint.write_arrays(workdir / AUTOENCODER, model.arrays_of(state, data.data.shape[1:]))
        z = model.load(workdir).encode(data.data)
        require_finite(z, _EMBEDDING, _DIVERGED)
        write_embeddings(workdir, z)

    hosts.run_on_primary("embedding of the training set", embed)
    prior = builders.prior(settings)

    trained = isinstance(prior, TrainedPrior)
    together = spans_processes(mesh2)
    if settings.eval.stage2_every:
        common["evaluation"] = periodic_eval.PriorEvaluator(
            **told, hosts=hosts if together else ProcessGroup()
        )
    if trained and settings.schedule == "two_stage" and together:
        state = _train_prior(settings, read_embeddings(workdir), mesh=mesh2, **common)

    def finish() -> None:
        if not trained:
            arrays = fit_prior(settings, workdir, settings.prior, say=report.say)
        elif settings.schedule == "joint" or together:
            arrays = prior.export(state)
        else:
            z = read_embeddings(workdir)
            arrays = prior.export(_train_prior(settings, z, mesh=mesh2, **common))
        arrays = _finite_prior(settings.prior, arrays)
        checkpoint.write_arrays(prior_path(workdir, settings.prior), arrays)

    hosts.run_on_primary("the prior", finish)


def fit_prior(
    settings: ConfigDict, workdir: Path, name: str, *, say: Callable[[str], None]
) -> dict[str, Any]:
    """Returns the arrays of a prior on the embeddings that a finished stage 1 has left.

    A prior that is trained and is not the run's own takes its arguments' defaults and the config's
    `stage2`; what its training leaves is in a directory beside the arrays.

    Raises:
      UserError: for the run's own prior, if it is trained: that belongs to the training command.
      Stopped: after SIGTERM or Ctrl-C, when the state is saved.
    """
    prior = builders.prior(settings, name)
    if isinstance(prior, SharedPrior):
        return prior.from_stage1(checkpoint.read_arrays(workdir / AUTOENCODER)["params"])
    kept = (workdir / f"{BEST}.json").is_file()  # by `kept`, which trains no prior
    if isinstance(prior, TrainedPrior) and name == settings.prior and not kept:
        raise UserError(
            f"{workdir} has no trained prior '{name}'; training has not come to it yet. Go on with "
            f"the training command: python -m pmjax.main --workdir={workdir} --config=…"
        )
    z = read_embeddings(workdir)
    if not isinstance(prior, TrainedPrior):
        require_finite(z, _EMBEDDING, _DIVERGED)
        say(f"Fitting the prior '{name}' to {len(z)} embeddings.")
        return _finite_prior(name, prior.fit(z, seed=settings.seed))
    beside = prior_path(workdir, name).with_suffix("")
    report = Report(beside)
    try:
        report.say(f"Training the prior '{name}' on {len(z)} embeddings.")
        mesh, directory = make_mesh(1), beside / "checkpoints"
        state = _train_prior(settings, z, name, mesh=mesh, directory=directory, report=report)
        return _finite_prior(name, prior.export(state))
    except Stopped as stopped:
        report.say(f"{stopped} The same command goes on from there.")
        raise
    finally:
        report.close()


def _train_prior(
    settings: ConfigDict, z: np.ndarray, name: str | None = None, **where
) -> TrainState:
    """Trains a prior (None: the config's own) on embeddings z [N, d]."""
    require_finite(z, _EMBEDDING, _DIVERGED)
    stage2 = settings.stage2
    stage = "stage2" if name is None else name
    with resource_errors.device_memory(
        stage,
        batch_size=stage2.batch_size,
        accumulate=stage2.optimizer.accumulate,
        keys=("config.stage2.batch_size", "config.stage2.optimizer.accumulate"),
    ):
        return train(
            stage=stage,
            game=builders.stage2_game(settings, name, z=z),
            data=z,
            steps=stage2.steps,
            batch_size=stage2.batch_size,
            steps_per_dispatch=stage2.steps_per_dispatch,
            info={"config": training_config(settings), "data": workdirs.fingerprint(z)},
            **_common(settings),
            **where,
        )


def _common(settings: ConfigDict) -> dict[str, Any]:
    """Returns the arguments of `train` that both stages take from the same keys."""
    return dict(
        seed=settings.seed,
        ema_decay=settings.ema_decay,
        mode=settings.parallel,
        device_budget=settings.data.device_budget_gb * 1e9,
        checkpoint_every=settings.checkpoint.every,
        keep=settings.checkpoint.keep,
        log_every=settings.log_every,
        skip_nonfinite=settings.get("skip_nonfinite", 0),  # older workdirs do not have it
    )


def train(
    *,
    stage: str,
    game: MethodSpec,
    data: np.ndarray,
    steps: int,
    batch_size: int,
    steps_per_dispatch: int,
    seed: int,
    ema_decay: float,
    mode: str,
    mesh: jax.sharding.Mesh,
    device_budget: float,
    directory: Path,
    checkpoint_every: int,
    keep: int,
    log_every: int,
    skip_nonfinite: int = 0,
    traced: tuple[int, int] | None = None,
    evaluation: periodic_eval.PeriodicEvaluator | None = None,
    info: dict,
    report: Report | Log,
    hosts: ProcessGroup | None = None,
) -> TrainState:
    """Trains a game on the examples `data` [N, …], from its newest checkpoint on.

    Args:
      stage: its name, in the logs.
      game: nets and objectives.
      data: uint8 images, points or embeddings.
      steps: how many in all.
      batch_size: of the global batch.
      steps_per_dispatch: steps that the devices make without the host.
      seed: of the initial weights, of the noise, and of the order of the data.
      ema_decay: of the averages in the state.
      mode: 'jit' or 'pmap'.
      mesh: the devices.
      device_budget: bytes that the data may take on each device; what does not fit is streamed.
      directory: where checkpoints are kept.
      checkpoint_every: steps.
      keep: how many checkpoints.
      log_every: steps.
      skip_nonfinite: how many steps that are not finite may be left out.
      traced: first step to trace and how many.
      evaluation: of states on the way.
      info: is kept in each checkpoint; a checkpoint with another one is refused.
      report: where progress is shown.
      hosts: the processes that the mesh may span (None: this one alone).

    Returns:
      The state after the last step, on the devices.

    Raises:
      UserError: if an example, a loss or a gradient is not finite, or a disk is full; the last
        checkpoint stays good.
      Stopped: after SIGTERM or Ctrl-C, when the state is saved.
    """
    hosts = hosts or ProcessGroup()
    require_finite(data, f"{stage}: example", "Mend or remove it.")
    together = spans_processes(mesh)
    checkpoints = Checkpoints(directory / stage, keep=keep, hosts=hosts if together else None)
    restored = checkpoints.restore(
        jax.eval_shape(partial(init_state, game), jax.random.key(seed)), say=report.say
    )
    if restored is None:
        state, found = jax.jit(partial(init_state, game))(jax.random.key(seed)), {}
    else:
        state, found = restored
        workdirs.require_same(found, info, stage)
    start = int(state.step)
    report.resume(stage, start)
    if evaluation and start:
        evaluation.catch_up(state, start)
    if start >= steps:
        report.say(f"{stage}: finished before, at step {start}.")
        checkpoints.close()
        return state
    if start:
        report.say(f"{stage}: going on from step {start}.")
    state = replicate(state, mesh)

    budget = _budget(device_budget, mesh, hosts if together else ProcessGroup())
    table, divided = place_dataset(data, mesh, budget=budget)
    if table is None:
        short = " (half of this machine's free memory)" if budget < device_budget else ""
        report.say(
            f"{stage}: {data.nbytes / 1e9:.2f} GB of data are more than the budget of "
            f"{budget / 1e9:.2f} GB{short} on each of {mesh.size} devices; streaming."
        )
    dispatches = _dispatches(start, steps, steps_per_dispatch)
    rows = partial(batch_indices, len(data), batch_size, seed=seed)
    if table is None:
        parts = stream(
            data,
            batch_size=batch_size,
            seed=seed,
            start=start,
            stop=steps,
            rows=local_rows(batch_size, mesh),
        )
        batches = (np.stack([next(parts) for _ in range(*cut)]) for cut in dispatches)
    else:
        batches = (np.stack([rows(step=step) for step in range(*cut)]) for cut in dispatches)
    axis = collectives.batch_axis(mode)
    run = compile_step(
        partial(
            train_step,
            game=game,
            ema_decay=ema_decay,
            axis=axis,
            skip_nonfinite=skip_nonfinite > 0,
        ),
        mode=mode,
        mesh=mesh,
        gather=table is not None,
        divided=divided,
    )

    trace = profiler.Profiler(traced, directory.parent / "profile")
    monitor = MetricsMonitor(
        stage,
        [objective.name for objective in game.objectives],
        steps=steps,
        log_every=log_every,
        report=report,
        skip=skip_nonfinite,
        skipped=found.get("skipped", 0),
        saved=start,
    )
    pending = None  # the dispatch before: its steps and its metrics
    try:
        with hosts.signals(), jax.transfer_guard("disallow"):
            for (first, last), batch in zip(dispatches, batches, strict=True):
                trace.before(first, last)
                state, metrics = run(state, table, batch)
                if trace.after(last, metrics):
                    report.say(
                        f"{stage}: traced up to step {last}; see {directory.parent}/profile."
                    )
                if pending:
                    monitor.update(*pending)
                pending = (first, metrics)
                stop = hosts.should_stop(together=together)
                looks = evaluation is not None and evaluation.due(first, last)
                if last == steps or _crosses(first, last, checkpoint_every) or looks or stop:
                    monitor.update(*pending)
                    pending = None
                    skipped = {"skipped": monitor.skipped} if monitor.skipped else {}
                    checkpoints.save(state, info | skipped)
                    monitor.saved = last
                    if looks and not stop:
                        evaluation(state, last)
                if stop and last < steps:
                    checkpoints.close()
                    raise Stopped(f"{stage}: stopped by {stop} after step {last}; it is saved.")
    except NotFinite:  # on all hosts alike
        checkpoints.close()
        raise
    trace.close()
    checkpoints.close()
    return state


def _budget(wanted: float, mesh: jax.sharding.Mesh, hosts: ProcessGroup) -> float:
    """Returns the bytes that data may take on each device, the same on all hosts.

    Devices that are the host's own cores share its memory: half of what is free there.
    """
    free = free_memory()
    if mesh.devices.flat[0].platform != "cpu" or free is None:
        return wanted
    mine = min(wanted, free / 2 / len(mesh.local_devices))
    return min(hosts.all_gather_object("the free memory", mine))


def _dispatches(start: int, steps: int, per_dispatch: int) -> list[tuple[int, int]]:
    """Cuts [start, steps) at the multiples of `per_dispatch`."""
    cuts = [start, *range((start // per_dispatch + 1) * per_dispatch, steps, per_dispatch), steps]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _crosses(first: int, last: int, every: int) -> bool:
    return first // every != last // every


def _finite_prior(name: str, arrays: dict[str, Any]) -> dict[str, Any]:
    """Returns a prior's arrays, unless one of them is not finite."""
    require_finite_arrays(arrays, f"The prior '{name}'", _DIVERGED)
    return arrays


def _check_same(fingerprints: list[str]) -> None:
    """Raises `UserError` unless all hosts have the first one's training data."""
    others = [i for i, found in enumerate(fingerprints) if found != fingerprints[0]]
    if others:
        raise UserError(
            f"The training data of {processes(others)} differ from process 0's. Give all hosts "
            f"the same files (config.data.path, config.data.manual_dir)."
        )
