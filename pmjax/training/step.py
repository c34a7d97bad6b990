"""One training step of any method: its objectives in turn, on one state. Pure functions only."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec
from pmjax.nets import base as nets

Array = jax.Array
Tree = Any
Metrics = dict[str, Array]


@struct.dataclass
class TrainState:
    """All that changes while training; the rest is closed over."""

    step: Array
    params: Tree
    stats: Tree
    opt: Tree
    ema: Tree
    key: Array


def init_state(game: MethodSpec, key: Array) -> TrainState:
    """Initialises parameters, statistics, optimizers and averages from one key."""
    params, stats = {}, {}
    for index, (name, (net, shape)) in enumerate(game.nets.items()):
        example = jnp.zeros((2, *shape))
        params[name], stats[name] = nets.init(net, jax.random.fold_in(key, index), example)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt={
            p.name: p.optimizer(p.updates_per_step).init(_pick(params, p.nets))
            for p in game.objectives
        },
        ema=jax.tree.map(jnp.copy, _pick(params, game.averaged)),
        key=jax.random.fold_in(key, len(game.nets)),
    )


def train_step(
    state: TrainState,
    batch: Array,
    *,
    game: MethodSpec,
    ema_decay: float,
    axis: str | None = None,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """Lets every objective make its updates on one batch.

    Objectives share one pass through `forward`, as a linear map from changes of the nets to changes of
    what it returned; a loss makes of these its own change, and a gradient is that of both together,
    transposed. So each objective pays for the way back from what its loss takes, and for nothing else.
    What a loss computes itself, from `params`, sees the moves of the objectives before.

    Args:
      state: the state before the step.
      batch: [B, …] examples, the global batch (under pmap: this device's rows).
      game: the method.
      ema_decay: of the averages; less during the first steps, so that they forget the start.
      axis: name of the batch axis under pmap.
      skip_nonfinite: whether a step in which anything is not finite leaves all as it was, but for
        the number of the step; the metric 'skipped' is then 1, else 0.

    Returns:
      The state after the step, and the metrics: means over the global batch.
    """
    key = jax.random.fold_in(state.key, state.step)
    params, stats, opt, metrics = state.params, state.stats, dict(state.opt), {}

    def forward(params, stats):
        def run(moving):
            return game.forward(params | moving, stats, batch, jax.random.fold_in(key, 0))

        return jax.linearize(run, _pick(params, game.shared_nets), has_aux=True)

    shared, pass_on, stats = forward(params, stats)
    turn = 0
    for objective in game.objectives:
        optimizer = objective.optimizer(objective.updates_per_step)
        for repeat in range(objective.updates_per_step):
            if repeat and set(objective.nets) & set(game.shared_nets):
                shared, pass_on, _ = forward(params, stats)
            turn += 1
            moving = _pick(params, objective.nets)

            def loss_of(moving, shared, objective=objective, turn=turn, params=params, stats=stats):
                key_of_turn = jax.random.fold_in(key, turn)
                return objective.loss(params | moving, stats, shared, key_of_turn)

            loss, change, (extra, stats) = jax.linearize(loss_of, moving, shared, has_aux=True)
            through = _pick(params, game.shared_nets)
            grads = collectives.mean(_gradient(loss, change, moving, pass_on, through), axis)
            updates, opt[objective.name] = optimizer.update(grads, opt[objective.name], moving)
            params = params | optax.apply_updates(moving, updates)
        metrics |= {f"loss/{objective.name}": loss, **extra}
        metrics[f"grad_norm/{objective.name}"] = optax.tree.norm(grads)

    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update(_pick(params, game.averaged), state.ema, 1 - decay)
    after = state.replace(step=state.step + 1, params=params, stats=stats, opt=opt, ema=ema)
    metrics = collectives.mean(metrics, axis)
    if skip_nonfinite:
        bad = collectives.mean(_count_nonfinite((metrics, params, stats, opt, ema)), axis) > 0
        before = state.replace(step=after.step, key=after.key)
        after = jax.tree.map(lambda old, new: jnp.where(bad, old, new), before, after)
        metrics["skipped"] = bad.astype(jnp.float32)
    return after, metrics


def _gradient(
    loss: Array, change: Callable, moving: Tree, pass_on: Callable, through: Tree
) -> Tree:
    """Returns the gradient of a loss by what moves, by itself and through `forward`.

    Args:
      loss: a number, of the loss's type.
      change: of the loss, by changes of `moving` and of what `forward` returned; linear.
      moving: parameters that a objective moves.
      pass_on: changes of the parameters `through` to those of what `forward` returned; linear.
      through: parameters that `forward` is a function of.
    """

    def whole(moves):
        return change(_pick(moves, tuple(moving)), pass_on(_pick(moves, tuple(through))))

    (gradient,) = jax.linear_transpose(whole, through | moving)(jnp.ones_like(loss))
    return _pick(gradient, tuple(moving))


def _count_nonfinite(tree: Tree) -> Array:
    """Returns in how many arrays a number is not finite, as a float."""
    floats = [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.inexact)]
    return sum(jnp.any(~jnp.isfinite(a)).astype(jnp.float32) for a in floats)


def _pick(tree: dict[str, Tree], names: tuple[str, ...]) -> dict[str, Tree]:
    return {name: tree[name] for name in names}
