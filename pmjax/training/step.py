"""One training step of any method: each objective updates its nets. Pure functions only."""

import itertools
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from pmjax.datasets.batches import to_float
from pmjax.distributed import collectives
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, Metrics, Objective, Shared
from pmjax.nets import base as nets
from pmjax.training.optimizers import Optimizer, for_objective
from pmjax.training.shared_forward import SharedPass, linearize_forward, value_and_grad

Array = jax.Array
Tree = Any


class TrainState(struct.PyTreeNode):
    """All that changes in training; modules, optimizers and configuration are closed over."""

    step: Array
    params: Tree
    stats: Tree
    opt: Tree
    ema: Tree
    key: Array


def init_state(spec: MethodSpec, optimizer: Optimizer, key: Array) -> TrainState:
    """Initializes parameters, statistics, optimizers and averages from one key."""
    params, stats = {}, {}
    for index, (name, net) in enumerate(spec.nets.items()):
        example = jnp.zeros((2, *net.input_shape))
        params[name], stats[name] = nets.init(net.module, jax.random.fold_in(key, index), example)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt={
            objective.name: for_objective(optimizer, objective).init(_pick(params, objective.nets))
            for objective in spec.objectives
        },
        ema=jax.tree.map(jnp.copy, _pick(params, spec.averaged)),
        key=jax.random.fold_in(key, len(spec.nets)),
    )


def train_step(
    state: TrainState,
    batch: Array,
    *,
    spec: MethodSpec,
    optimizer: Optimizer,
    ema_decay: float,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """Updates every objective's nets on one batch, in the order of the objectives.

    All losses start from one forward pass, made before any update, and again before each repeated
    update of one of its nets. What a loss computes itself sees the updates before it.

    Args:
      state: before the step.
      batch: [B, …] uint8 or float examples, the global batch (under pmap: this device's rows).
      spec: the method.
      optimizer: from `make_optimizer`.
      ema_decay: of the averages; smaller in the first steps, so that they forget the start.
      skip_nonfinite: whether a step with a value that is not finite changes nothing but the step
        number; the metric 'skipped' is then 1, else 0.

    Returns:
      The state after the step, and the metrics: means over the global batch.
    """
    step_key, x = jax.random.fold_in(state.key, state.step), to_float(batch)
    keys = map(partial(jax.random.fold_in, step_key), itertools.count())
    forward = partial(_forward, spec, x, next(keys))
    params, opt, metrics = state.params, dict(state.opt), dict[str, Array]()
    shared, stats = forward(params, state.stats)
    for objective in spec.objectives:
        name = objective.name
        transformation = for_objective(optimizer, objective)
        for repeat in range(objective.updates_per_step):
            if repeat and set(objective.nets) & set(spec.shared_nets):
                shared, _ = forward(params, stats)
            loss = partial(_loss, spec, objective, next(keys), params, stats)
            trainable = _pick(params, objective.nets)
            (value, (extra, stats)), grads = value_and_grad(loss, shared, has_aux=True)(trainable)
            grads = collectives.mean(grads)
            updates, opt[name] = transformation.update(grads, opt[name], trainable)
            params = params | optax.apply_updates(trainable, updates)
        metrics |= {f"loss/{name}": value, **extra}
        metrics[f"grad_norm/{name}"] = optax.tree.norm(grads)

    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update(_pick(params, spec.averaged), state.ema, 1 - decay)
    after = state.replace(step=state.step + 1, params=params, stats=stats, opt=opt, ema=ema)
    metrics = collectives.mean(metrics)
    return _skip_if_nonfinite(state, after, metrics) if skip_nonfinite else (after, metrics)


def _forward(
    spec: MethodSpec, x: Array, key: Array, params: Tree, stats: Tree
) -> tuple[SharedPass, Tree]:
    """Runs the method's forward pass; returns the pass and the new statistics."""

    def forward(trainable: Tree) -> tuple[Tree, Tree]:
        bound = nets.Nets(spec.nets, params | trainable, stats)
        output = spec.forward(bound, x, key)
        for objective in spec.objectives:
            if missing := bound.used.intersection(objective.nets) - set(spec.shared_nets):
                raise UserError(
                    f"The forward pass calls {sorted(missing)}, which objective '{objective.name}' "
                    f"updates: add to shared_nets, now {list(spec.shared_nets)}."
                )
        return output, bound.stats

    return linearize_forward(forward, _pick(params, spec.shared_nets))


def _loss(
    spec: MethodSpec,
    objective: Objective,
    key: Array,
    params: Tree,
    stats: Tree,
    trainable: Tree,
    output: dict[str, Array],
) -> tuple[Array, tuple[Metrics, Tree]]:
    """Computes an objective's loss; returns it, its metrics and the new statistics."""
    bound = nets.Nets(spec.nets, params | trainable, stats)
    returned = objective.loss(bound, Shared(**output), key)
    if not (isinstance(returned, tuple) and len(returned) == 2):
        raise UserError(f"The loss of objective '{objective.name}' must return (loss, metrics).")
    value, metrics = returned
    if shape := jnp.shape(value):
        raise UserError(
            f"The loss of objective '{objective.name}' has shape {shape}: return a scalar."
        )
    return value, (metrics, bound.stats)


def _skip_if_nonfinite(
    before: TrainState, after: TrainState, metrics: Metrics
) -> tuple[TrainState, Metrics]:
    """Keeps the state before, but for the step number, if any value is not finite."""
    floats = [a for a in jax.tree.leaves((metrics, after)) if jnp.issubdtype(a.dtype, jnp.inexact)]
    count = sum(jnp.any(~jnp.isfinite(a)).astype(jnp.float32) for a in floats)
    bad = collectives.mean(count) > 0
    before = before.replace(step=after.step)
    after = jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, after)
    return after, metrics | {"skipped": bad.astype(jnp.float32)}


def _pick(tree: dict[str, Tree], names: tuple[str, ...]) -> dict[str, Tree]:
    return {name: tree[name] for name in names}
