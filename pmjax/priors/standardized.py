"""What several trained priors share: their net sees embeddings with mean 0 and variance 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, Objective
from pmjax.nets import base as nets
from pmjax.training.step import TrainState

Array = jax.Array
_LEAST = 1e-6  # standard deviation; coordinates that are constant become 0
_MEMORY = 1000  # batches: so many first ones count the same, later ones fade slowly


class Standardize(nn.Module):
    """Takes the running mean off z [N, d], and divides by the running standard deviation."""

    axis: str | None = None

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d]; the collection 'moments' moves if `train`."""
        count = self.variable("moments", "count", jnp.zeros, ())
        mean = self.variable("moments", "mean", jnp.zeros, z.shape[1:])
        variance = self.variable("moments", "variance", jnp.ones, z.shape[1:])
        if train and not self.is_initializing():
            count.value = jnp.minimum(count.value + 1, _MEMORY)
            far = collectives.mean(jnp.square(z - mean.value).mean(0), self.axis)
            move = (collectives.mean(z.mean(0), self.axis) - mean.value) / count.value
            mean.value += move
            # `far` is about the mean before it moved.
            moved = variance.value + (far - variance.value) / count.value - jnp.square(move)
            variance.value = jnp.maximum(moved, 0)
        return (z - mean.value) / jnp.maximum(jnp.sqrt(variance.value), _LEAST)


def game(
    parts: dict[str, tuple[nn.Module, tuple[int, ...]]],
    loss: Callable[[dict, Array, Array], tuple[Array, dict[str, Array]]],
    latent_dim: int,
    optimizer: Callable,
    axis: str | None,
) -> MethodSpec:
    """Returns the game of one objective, who moves all nets.

    Args:
      parts: the nets by name, which have no state, with the shapes of their inputs.
      loss: (params, y, key) -> (loss, metrics), with the standardised embeddings y [N, d].
      latent_dim: d.
      optimizer: the objective's.
      axis: name of the batch axis under pmap.
    """
    standardize = Standardize(axis)

    def forward(params, stats, batch, key):
        return {"z": batch}, stats

    def player_loss(params, stats, shared, key):
        y, moments = nets.update(standardize, {}, stats["standardize"], shared["z"])
        value, metrics = loss(params, y, key)
        return value, (metrics, stats | {"standardize": moments})

    return MethodSpec(
        parts | {"standardize": (standardize, (latent_dim,))},
        forward,
        (),
        (Objective("prior", tuple(parts), player_loss, optimizer),),
        averaged=tuple(parts),
    )


def export(state: TrainState, *names: str) -> dict:
    """Returns some nets' averaged parameters, and the embeddings' mean and deviation."""
    moments = state.stats["standardize"]["moments"]
    arrays = {"mean": moments["mean"], "deviation": jnp.sqrt(moments["variance"])}
    return arrays | {name: state.ema[name] for name in names}


def restore(params: dict, y: Array) -> Array:
    """Maps standardised embeddings y [N, d] back to z."""
    return jnp.asarray(params["mean"]) + jnp.asarray(params["deviation"]) * y
