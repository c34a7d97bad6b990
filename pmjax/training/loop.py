"""The training loop: one function that trains any `MethodSpec` on an array of examples."""

import logging
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pmjax.datasets.batches import batch_indices, stream
from pmjax.distributed.compile import compile_step
from pmjax.distributed.host_memory import free_memory
from pmjax.distributed.mesh import local_rows, on_cpu, place_dataset, replicate, spans_processes
from pmjax.distributed.processes import ProcessGroup, Stopped
from pmjax.finite import NotFinite, require_finite
from pmjax.methods.base import MethodSpec
from pmjax.reporting.run_log import RunLog
from pmjax.storage.checkpoint import Checkpoints
from pmjax.storage.workdir import require_same
from pmjax.training.monitor import MetricsMonitor
from pmjax.training.optimizers import Optimizer
from pmjax.training.options import LoopOptions
from pmjax.training.periodic_eval import PeriodicEvaluator
from pmjax.training.profiler import Profiler
from pmjax.training.step import TrainState, init_state, train_step

log = logging.getLogger(__name__)


def train(
    spec: MethodSpec,
    optimizer: Optimizer,
    data: np.ndarray,
    options: LoopOptions,
    *,
    mesh: jax.sharding.Mesh,
    directory: Path,
    info: dict[str, Any],
    run_log: RunLog,
    evaluator: PeriodicEvaluator | None = None,
    group: ProcessGroup | None = None,
) -> TrainState:
    """Trains from the newest checkpoint, or from the start, to the last step.

    Args:
      spec: nets and objectives.
      optimizer: from `make_optimizer`.
      data: examples [N, …]: uint8 images, points or embeddings.
      options: how to train.
      mesh: the devices.
      directory: parent of the directory with the checkpoints of the stage.
      info: saved with every checkpoint; a checkpoint with a different one is rejected.
      run_log: records metrics and shows progress.
      evaluator: evaluates and keeps intermediate models.
      group: the processes that the mesh may span (None: this process alone).

    Returns:
      The state after the last step, on the devices.

    Raises:
      UserError: if an example, a loss or a gradient is not finite, or a disk is full. The newest
        checkpoint remains valid.
      Stopped: after SIGTERM or Ctrl-C, once the state is saved.
    """
    stage, steps, every = options.stage, options.steps, options.checkpoint_every
    group = group or ProcessGroup()
    spans_hosts = spans_processes(mesh)
    training_group = group if spans_hosts else ProcessGroup()
    require_finite(data, f"{stage}: example", "Fix or remove it.")

    checkpoints = Checkpoints(directory / stage, keep=options.keep, group=training_group)
    init = partial(init_state, spec, optimizer)
    state, saved_info = _restore_or_init(checkpoints, init, options, info)
    start = int(state.step)
    run_log.resume(stage, start)
    if evaluator and start:
        evaluator.catch_up(state, start)
    if start >= steps:
        log.info("%s: already finished at step %d.", stage, start)
        checkpoints.close()
        return state
    if start:
        log.info("%s: resuming at step %d.", stage, start)

    state = replicate(state, mesh)
    table, example_shape = _place(data, options, mesh, training_group)
    dispatches = _dispatches(start, steps, options.steps_per_dispatch)
    batches = _batches(data, dispatches, options, from_table=table is not None, mesh=mesh)
    step = partial(train_step, spec=spec, optimizer=optimizer, ema_decay=options.ema_decay)
    step = partial(step, skip_nonfinite=options.skip_nonfinite > 0)
    compiled_step = compile_step(
        step, mode=options.mode, mesh=mesh, gather=table is not None, divided=example_shape
    )

    profiler = Profiler(options.profile, directory.parent / "profile")
    names, skipped = [objective.name for objective in spec.objectives], saved_info.get("skipped", 0)
    monitor = MetricsMonitor(options, names, run_log, skipped=skipped, saved=start)
    pending = None  # the metrics of the previous dispatch, which are read while this one runs
    try:
        with group.signals(), jax.transfer_guard("disallow"):
            for (first, last), batch in zip(dispatches, batches, strict=True):
                profiler.before(first, last)
                state, metrics = compiled_step(state, table, batch)
                profiler.after(last, metrics)
                if pending:
                    monitor.update(*pending)
                pending = first, metrics
                stop = group.should_stop(spans_hosts=spans_hosts)
                due = evaluator is not None and evaluator.due(first, last)
                save = last == steps or first // every != last // every
                if save or due or stop:
                    monitor.update(*pending)
                    pending = None
                    checkpoints.save(state, info | monitor.counts())
                    monitor.saved = last
                if evaluator and due and not stop:
                    evaluator(state, last)
                if stop and last < steps:
                    raise Stopped(f"{stage}: stopped by {stop} after step {last}, which is saved.")
    except (NotFinite, Stopped):  # raised on all processes alike
        checkpoints.close()
        raise
    profiler.close()
    checkpoints.close()
    return state


def _restore_or_init(
    checkpoints: Checkpoints,
    init: Callable[[jax.Array], TrainState],
    options: LoopOptions,
    info: dict[str, Any],
) -> tuple[TrainState, dict[str, Any]]:
    """Returns the state and the info of the newest checkpoint, or the initial state and no info."""
    key = jax.random.key(options.seed)
    restored = checkpoints.restore(jax.eval_shape(init, key))
    if restored is None:
        return jax.jit(init)(key), {}
    require_same(restored[1], info, options.stage)
    return restored


def _place(
    data: np.ndarray, options: LoopOptions, mesh: jax.sharding.Mesh, group: ProcessGroup
) -> tuple[jax.Array | None, tuple[int, ...] | None]:
    """Places the data on the devices as `place_dataset` does, within the memory there is.

    CPU devices share the memory of their machine, and may use half of what is free.
    """
    budget, free = options.device_budget, free_memory()
    if on_cpu(mesh) and free is not None:
        own = min(budget, free / 2 / len(mesh.local_devices))
        budget = min(group.all_gather_object("the free memory", own))
    table, example_shape = place_dataset(data, mesh, budget=budget)
    if table is None:
        short = " (half of this machine's free memory)" if budget < options.device_budget else ""
        log.info(
            f"{options.stage}: {data.nbytes / 1e9:.2f} GB of data exceed the budget of "
            f"{budget / 1e9:.2f} GB{short} on each of {mesh.size} devices; streaming."
        )
    return table, example_shape


def _batches(
    data: np.ndarray,
    dispatches: list[tuple[int, int]],
    options: LoopOptions,
    *,
    from_table: bool,
    mesh: jax.sharding.Mesh,
) -> Iterator[np.ndarray]:
    """Yields the batches of each dispatch: row numbers [K, B], or this process's examples."""
    size, seed, start = options.batch_size, options.seed, dispatches[0][0]
    batches: Iterator[np.ndarray]
    if from_table:
        numbers = range(start, options.steps)
        batches = (batch_indices(len(data), size, step, seed=seed) for step in numbers)
    else:
        own = local_rows(size, mesh)
        batches = stream(
            data, batch_size=size, seed=seed, start=start, stop=options.steps, rows=own
        )
    for dispatch in dispatches:
        yield np.stack([next(batches) for _ in range(*dispatch)])


def _dispatches(start: int, steps: int, per_dispatch: int) -> list[tuple[int, int]]:
    """Cuts [start, steps) at the multiples of `per_dispatch`."""
    cuts = [start, *range((start // per_dispatch + 1) * per_dispatch, steps, per_dispatch), steps]
    return list(zip(cuts[:-1], cuts[1:], strict=True))
