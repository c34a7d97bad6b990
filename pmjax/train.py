"""Both stages of a run, and the loop that trains either."""

import hashlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict

from pmjax import build, checkpoint, datasets, model, parallel, priors
from pmjax.checkpoint import Checkpoints
from pmjax.errors import UserError
from pmjax.report import Report
from pmjax.step import Game, TrainState, init_state, train_step
from pmjax.workdir import AUTOENCODER, digest, prior_path, write_embeddings


class Stopped(Exception):
    """SIGTERM or Ctrl-C came; the state is saved."""


def fit(settings: ConfigDict, workdir: Path, report: Report) -> None:
    """Trains what is not trained yet, and leaves the model in the workdir."""
    mesh = parallel.make_mesh(settings.devices)
    parallel.check_batch(settings.data.batch_size, mesh, "config.data.batch_size")
    stage2 = settings.stage2
    mesh2 = parallel.make_mesh(stage2.devices)
    parallel.check_batch(stage2.batch_size, mesh2, "config.stage2.batch_size")
    data = build.dataset(settings, "train")
    for name in data.skipped:
        report.say(f"Left out, cannot be read: {name}")
    report.say(
        f"{settings.data.name}: {len(data.data)} examples of shape {data.data.shape[1:]}, "
        f"{mesh.size} × {jax.devices()[0].device_kind}, {settings.parallel}."
    )
    common = dict(
        seed=settings.seed,
        ema_decay=settings.ema_decay,
        mode=settings.parallel,
        device_budget=settings.data.device_budget_gb * 1e9,
        directory=workdir / "checkpoints",
        checkpoint_every=settings.checkpoint.every,
        keep=settings.checkpoint.keep,
        log_every=settings.log_every,
        report=report,
    )
    state = train(
        stage="stage1",
        game=build.stage1_game(settings, data.data.shape[1:]),
        data=data.data,
        steps=settings.steps,
        batch_size=settings.data.batch_size,
        steps_per_dispatch=settings.steps_per_dispatch,
        mesh=mesh,
        info={"config": digest(settings), "data": data.fingerprint},
        **common,
    )
    _keep_autoencoder(state, workdir, data.data.shape[1:])
    z = model.load(workdir).encode(data.data)
    write_embeddings(workdir, z)
    prior = build.prior(settings)
    if settings.schedule == "joint":
        arrays = prior.trained(state)
    elif priors.is_trained(prior):
        state = train(
            stage="stage2",
            game=build.stage2_game(settings),
            data=z,
            steps=stage2.steps,
            batch_size=stage2.batch_size,
            steps_per_dispatch=stage2.steps_per_dispatch,
            mesh=mesh2,
            info={"config": digest(settings), "data": hashlib.sha256(z.tobytes()).hexdigest()},
            **common,
        )
        arrays = prior.trained(state)
    else:
        report.say(f"Fitting the prior '{settings.prior}' to {len(z)} embeddings.")
        arrays = prior.fit(z, seed=settings.seed)
    checkpoint.write_arrays(prior_path(workdir, settings.prior), arrays)


def train(
    *,
    stage: str,
    game: Game,
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
    info: dict,
    report: Report,
) -> TrainState:
    """Trains a game on the examples `data` [N, …], from its newest checkpoint on.

    Args:
      stage: its name, in the logs.
      game: nets and players.
      data: uint8 images, points or embeddings.
      steps: how many in all.
      batch_size: of the global batch.
      steps_per_dispatch: steps that the devices make without the host.
      seed: of the initial weights, of the noise, and of the order of the data.
      ema_decay: of the averages in the state.
      mode: 'jit' or 'pmap'.
      mesh: the devices.
      device_budget: bytes up to which the data is kept on each device; beyond it is streamed.
      directory: where checkpoints are kept.
      checkpoint_every: steps.
      keep: how many checkpoints.
      log_every: steps.
      info: is kept in each checkpoint; a checkpoint with another one is refused.
      report: where progress is shown.

    Returns:
      The state after the last step, on the devices.

    Raises:
      UserError: if a loss or a gradient is not finite; the last checkpoint stays good.
      Stopped: after SIGTERM or Ctrl-C, when the state is saved.
    """
    checkpoints = Checkpoints(directory / stage, keep=keep)
    restored = checkpoints.restore(
        jax.eval_shape(partial(init_state, game), jax.random.key(seed)), say=report.say
    )
    if restored is None:
        state = jax.jit(partial(init_state, game))(jax.random.key(seed))
    else:
        state, found = restored
        _check_info(found, info, stage)
    start = int(state.step)
    report.resume(stage, start)
    if start >= steps:
        report.say(f"{stage}: finished before, at step {start}.")
        checkpoints.close()
        return state
    if start:
        report.say(f"{stage}: going on from step {start}.")
    state = parallel.replicate(state, mesh)

    on_device = datasets.fits(data, device_budget)
    if not on_device:
        report.say(
            f"{stage}: {data.nbytes / 1e9:.2f} GB of data are more than the devices' budget "
            f"of {device_budget / 1e9:.2f} GB; streaming."
        )
    table = parallel.replicate(np.asarray(data), mesh) if on_device else None
    dispatches = _dispatches(start, steps, steps_per_dispatch)
    batches = _batches(data, dispatches, batch_size=batch_size, seed=seed, rows_only=on_device)
    axis = parallel.axis_of(mode)
    run = parallel.compile_step(
        partial(train_step, game=game, ema_decay=ema_decay, axis=axis),
        mode=mode,
        mesh=mesh,
        gather=on_device,
    )

    pending = None  # the dispatch before: its steps and its metrics
    with _signals() as stop, jax.transfer_guard("disallow"):
        for (first, last), batch in zip(dispatches, batches, strict=True):
            state, metrics = run(state, table, batch)
            if pending:
                _look(stage, *pending, steps=steps, log_every=log_every, report=report)
            pending = (first, metrics)
            save = last == steps or _crosses(first, last, checkpoint_every) or stop
            if save:
                _look(stage, *pending, steps=steps, log_every=log_every, report=report)
                pending = None
                checkpoints.save(state, info)
            if stop and last < steps:
                checkpoints.close()
                raise Stopped(f"{stage}: stopped by {stop[0]} after step {last}; it is saved.")
    checkpoints.close()
    return state


def _dispatches(start: int, steps: int, per_dispatch: int) -> list[tuple[int, int]]:
    """Cuts [start, steps) at the multiples of `per_dispatch`."""
    cuts = [start, *range((start // per_dispatch + 1) * per_dispatch, steps, per_dispatch), steps]
    return list(zip(cuts[:-1], cuts[1:], strict=True))


def _batches(
    data: np.ndarray,
    dispatches: list[tuple[int, int]],
    *,
    batch_size: int,
    seed: int,
    rows_only: bool,
) -> Iterator[np.ndarray]:
    """Yields, for each dispatch, [K, B] row numbers or [K, B, …] examples: the same either way."""
    rows = partial(datasets.batch_indices, len(data), batch_size, seed=seed)
    if rows_only:
        for first, last in dispatches:
            yield np.stack([rows(step=step) for step in range(first, last)])
    else:
        start, stop = dispatches[0][0], dispatches[-1][1]
        stream = datasets.stream(data, batch_size=batch_size, seed=seed, start=start, stop=stop)
        for first, last in dispatches:
            yield np.stack([next(stream) for _ in range(first, last)])


def _crosses(first: int, last: int, every: int) -> bool:
    return first // every != last // every


def _look(stage, first, metrics, *, steps, log_every, report) -> None:
    """Reads a finished dispatch's metrics: stops at the first that is not finite, logs the rest."""
    metrics = {name: np.asarray(values) for name, values in jax.device_get(metrics).items()}
    count = len(next(iter(metrics.values())))
    for name, values in metrics.items():
        if not np.isfinite(values).all():
            step = first + int(np.argmin(np.isfinite(values))) + 1
            raise UserError(
                f"{stage}: {name} is {values[step - first - 1]} at step {step}. The last "
                f"checkpoint is good; lower the learning rate or clip gradients "
                f"(--config.optimizer.clip=1.0), with a new --workdir."
            )
    for step in range(first + 1, first + count + 1):
        if step % log_every == 0 or step == steps:
            values = {name: float(v[step - first - 1]) for name, v in metrics.items()}
            report.scalars(stage, step, values)
    latest = {name: float(v[-1]) for name, v in metrics.items() if name.startswith("loss/")}
    report.status(stage, first + count, steps, latest)


def _check_info(found: dict, expected: dict, stage: str) -> None:
    for name, value in expected.items():
        if found.get(name) != value:
            raise UserError(
                f"The checkpoint of {stage} belongs to another {name} ({found.get(name)}, now "
                f"{value}). Take a new --workdir, or bring the old {name} back."
            )


@contextmanager
def _signals() -> Iterator[list[str]]:
    """Collects SIGTERM and SIGINT in a list, so that the loop ends at a step."""
    received: list[str] = []

    def handle(number, frame):
        received.append(signal.Signals(number).name)

    before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _keep_autoencoder(state: TrainState, workdir: Path, shape: tuple[int, ...]) -> None:
    """Writes E and G, averaged where the state has an average."""
    params = state.params | state.ema
    arrays = {
        "params": {name: params[name] for name in ("E", "G")},
        "stats": {name: state.stats[name] for name in ("E", "G")},
        "shape": np.asarray(shape),
    }
    checkpoint.write_arrays(workdir / AUTOENCODER, arrays)
