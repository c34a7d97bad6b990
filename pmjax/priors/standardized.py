"""What several trained priors share: their net sees embeddings with mean 0 and variance 1."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, Objective, Shared
from pmjax.nets.base import Net, Nets
from pmjax.training.step import TrainState

Array = jax.Array
Loss = Callable[[Nets, Array, Array], LossValue]
_LEAST = 1e-6  # standard deviation; coordinates that are constant become 0
_MEMORY = 1000  # batches: so many first ones count the same, later ones fade slowly


class Standardize(nn.Module):
    """Takes the running mean off z [N, d], and divides by the running standard deviation."""

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d]; the collection 'moments' moves if `train`."""
        count = self.variable("moments", "count", jnp.zeros, ())
        mean = self.variable("moments", "mean", jnp.zeros, z.shape[1:])
        variance = self.variable("moments", "variance", jnp.ones, z.shape[1:])
        if train and not self.is_initializing():
            count.value = jnp.minimum(count.value + 1, _MEMORY)
            far = collectives.mean(jnp.square(z - mean.value).mean(0))
            move = (collectives.mean(z.mean(0)) - mean.value) / count.value
            mean.value += move
            # `far` is about the mean before it moved.
            moved = variance.value + (far - variance.value) / count.value - jnp.square(move)
            variance.value = jnp.maximum(moved, 0)
        return (z - mean.value) / jnp.maximum(jnp.sqrt(variance.value), _LEAST)


def spec(nets: dict[str, Net], loss: Loss, latent_dim: int, b1: float) -> MethodSpec:
    """Returns the spec of one objective that trains all nets on standardized embeddings.

    Args:
      nets: by name; they have no statistics.
      loss: (nets, y, key) -> (loss, metrics), with the standardized embeddings y [N, d].
      latent_dim: d.
      b1: of the objective's Adam.
    """

    def forward(nets: Nets, z: Array, key: Array) -> dict[str, Array]:
        return {"z": z}

    def prior_loss(nets: Nets, s: Shared, key: Array) -> LossValue:
        return loss(nets, nets.standardize(s.z), key)

    return MethodSpec(
        nets | {"standardize": Net(Standardize(), (latent_dim,))},
        forward,
        (),
        (Objective("prior", tuple(nets), prior_loss, b1=b1),),
        averaged=tuple(nets),
    )


def export(state: TrainState, *names: str) -> dict:
    """Returns some nets' averaged parameters, and the embeddings' mean and deviation."""
    moments = state.stats["standardize"]["moments"]
    arrays = {"mean": moments["mean"], "deviation": jnp.sqrt(moments["variance"])}
    return arrays | {name: state.ema[name] for name in names}


def restore(params: dict, y: Array) -> Array:
    """Maps standardised embeddings y [N, d] back to z."""
    return jnp.asarray(params["mean"]) + jnp.asarray(params["deviation"]) * y
