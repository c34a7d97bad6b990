"""What several trained priors share: their nets see embeddings with mean 0 and variance 1."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, Objective, Shared
from pmjax.nets.base import Net, Nets

Array = jax.Array
Loss = Callable[[Nets, Array, Array], LossValue]

_MIN_DEVIATION = 1e-6  # constant coordinates become 0
_MEMORY = 1000  # batches: the first ones have equal weights, later ones fade slowly


class Standardize(nn.Module):
    """Subtracts the running mean of z [N, d] and divides by the running standard deviation."""

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d]; updates the collection 'moments' if `train`."""
        count = self.variable("moments", "count", jnp.zeros, ())
        mean = self.variable("moments", "mean", jnp.zeros, z.shape[1:])
        variance = self.variable("moments", "variance", jnp.ones, z.shape[1:])
        if train and not self.is_initializing():
            count.value = jnp.minimum(count.value + 1, _MEMORY)
            # The second moment about the mean before its change; hence the last term below.
            moment = collectives.mean(jnp.square(z - mean.value).mean(0))
            change = (collectives.mean(z.mean(0)) - mean.value) / count.value
            mean.value += change
            updated = variance.value + (moment - variance.value) / count.value - jnp.square(change)
            variance.value = jnp.maximum(updated, 0)
        return (z - mean.value) / jnp.maximum(jnp.sqrt(variance.value), _MIN_DEVIATION)


def spec(nets: dict[str, Net], loss: Loss, latent_dim: int, *, b1: float) -> MethodSpec:
    """Returns the spec of one objective that updates all nets.

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


def export(params: dict[str, Any], stats: dict[str, Any], name: str) -> dict[str, Any]:
    """Returns a net's parameters, and the mean and standard deviation of the embeddings."""
    moments = stats["standardize"]["moments"]
    deviation = jnp.sqrt(moments["variance"])
    return {"mean": moments["mean"], "deviation": deviation, name: params[name]}


def restore(params: dict[str, Any], y: Array) -> Array:
    """Maps standardized embeddings y [N, d] back to z."""
    return jnp.asarray(params["mean"]) + jnp.asarray(params["deviation"]) * y
