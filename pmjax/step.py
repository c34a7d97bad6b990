"""One training step of any method: its players in turn, on one state. Pure functions only."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct

from pmjax import nets, parallel

Array = jax.Array
Tree = Any
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Player:
    """One of the players that a method alternates between.

    Attributes:
      name: appears in metrics, as 'loss/name'.
      nets: names of the nets whose parameters it moves.
      loss: (params, stats, shared, key) -> (loss, (metrics, stats)); `shared` is what the
        method's `forward` returned.
      optimizer: repeats -> the Optax transformation, whose schedule counts updates.
      repeats: updates in each step. All see the same batch, each with a key of its own.
    """

    name: str
    nets: tuple[str, ...]
    loss: Callable[[Tree, Tree, Tree, Array], tuple[Array, tuple[Metrics, Tree]]]
    optimizer: Callable[[int], optax.GradientTransformation]
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Game:
    """A method as the step sees it: nets, the forward pass that is shared, and the players.

    Attributes:
      nets: by name, each with the shape of one example of its input.
      forward: (params, stats, batch, key) -> (shared, stats), the pass that all players' losses
        start from. It is computed once a step, before anybody moves, and again only for a
        player's further updates; the statistics that it moves are moved once.
      forward_nets: names of the nets that `forward` calls.
      players: in the order of their turns.
      averaged: names of the nets of which the state keeps an exponential moving average.
    """

    nets: dict[str, tuple[nn.Module, tuple[int, ...]]]
    forward: Callable[[Tree, Tree, Array, Array], tuple[Tree, Tree]]
    forward_nets: tuple[str, ...]
    players: tuple[Player, ...]
    averaged: tuple[str, ...] = ()


def joint(first: Game, second: Game, averaged: tuple[str, ...]) -> Game:
    """Joins two games whose players then take turns in every step.

    The second's losses find what they need in the first's `forward`.
    """
    return dataclasses.replace(
        first,
        nets=first.nets | second.nets,
        players=first.players + second.players,
        averaged=averaged,
    )


@struct.dataclass
class TrainState:
    """All that changes while training; the rest is closed over."""

    step: Array
    params: Tree
    stats: Tree
    opt: Tree
    ema: Tree
    key: Array


def init_state(game: Game, key: Array) -> TrainState:
    """Initialises parameters, statistics, optimizers and averages from one key."""
    params, stats = {}, {}
    for index, (name, (net, shape)) in enumerate(game.nets.items()):
        example = jnp.zeros((2, *shape))
        params[name], stats[name] = nets.init(net, jax.random.fold_in(key, index), example)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        stats=stats,
        opt={p.name: p.optimizer(p.repeats).init(_pick(params, p.nets)) for p in game.players},
        ema=jax.tree.map(jnp.copy, _pick(params, game.averaged)),
        key=jax.random.fold_in(key, len(game.nets)),
    )


def train_step(
    state: TrainState,
    batch: Array,
    *,
    game: Game,
    ema_decay: float,
    axis: str | None = None,
    skip_nonfinite: bool = False,
) -> tuple[TrainState, Metrics]:
    """Lets every player make its updates on one batch.

    Players share one pass through `forward`, as a linear map from changes of the nets to changes of
    what it returned; a loss makes of these its own change, and a gradient is that of both together,
    transposed. So each player pays for the way back from what its loss takes, and for nothing else.
    What a loss computes itself, from `params`, sees the moves of the players before.

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

        return jax.linearize(run, _pick(params, game.forward_nets), has_aux=True)

    shared, pass_on, stats = forward(params, stats)
    turn = 0
    for player in game.players:
        optimizer = player.optimizer(player.repeats)
        for repeat in range(player.repeats):
            if repeat and set(player.nets) & set(game.forward_nets):
                shared, pass_on, _ = forward(params, stats)
            turn += 1
            moving = _pick(params, player.nets)

            def objective(moving, shared, player=player, turn=turn, params=params, stats=stats):
                key_of_turn = jax.random.fold_in(key, turn)
                return player.loss(params | moving, stats, shared, key_of_turn)

            loss, change, (extra, stats) = jax.linearize(objective, moving, shared, has_aux=True)
            through = _pick(params, game.forward_nets)
            grads = parallel.mean(_gradient(loss, change, moving, pass_on, through), axis)
            updates, opt[player.name] = optimizer.update(grads, opt[player.name], moving)
            params = params | optax.apply_updates(moving, updates)
        metrics |= {f"loss/{player.name}": loss, **extra}
        metrics[f"grad_norm/{player.name}"] = optax.tree.norm(grads)

    decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
    ema = optax.incremental_update(_pick(params, game.averaged), state.ema, 1 - decay)
    after = state.replace(step=state.step + 1, params=params, stats=stats, opt=opt, ema=ema)
    metrics = parallel.mean(metrics, axis)
    if skip_nonfinite:
        bad = parallel.mean(_count_nonfinite((metrics, params, stats, opt, ema)), axis) > 0
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
      moving: parameters that a player moves.
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
