"""What several trained priors share: their nets see embeddings with mean 0 and variance 1."""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, Objective, Shared
from pmjax.nets.base import Net, Nets
from pmjax.priors.base import Array, TrainedPrior, Tree

_MIN_DEVIATION = 1e-6  # of the mean: constant coordinates become 0 up to rounding
_TINY = 1e-19  # its square is the smallest normal float32
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
            before = variance.value * (1 - 1 / count.value)  # 0 in the first step
            variance.value = jnp.maximum(before + moment / count.value - jnp.square(change), 0)
        least = _MIN_DEVIATION * jnp.abs(mean.value) + _TINY
        return (z - mean.value) / jnp.maximum(jnp.sqrt(variance.value), least)


class StandardizedPrior(TrainedPrior):
    """A trained prior with one objective, whose nets see embeddings with mean 0 and variance 1."""

    sampled: ClassVar[str]  # the net that `sample` needs
    b1: float  # of the objective's Adam

    @abc.abstractmethod
    def nets(self, latent_dim: int) -> dict[str, Net]:
        """Returns the nets by name; they have no statistics."""

    @abc.abstractmethod
    def loss(self, nets: Nets, y: Array, key: Array) -> LossValue:
        """Returns the loss on standardized embeddings y [N, d], and metrics."""

    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the nets, and the objective that updates all of them."""
        nets = self.nets(latent_dim)
        objective = Objective("prior", tuple(nets), self._loss, b1=self.b1)
        all_nets = nets | {"standardize": Net(Standardize(), (latent_dim,))}
        return MethodSpec(all_nets, self.forward, (), (objective,), averaged=tuple(nets))

    def _loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        return self.loss(nets, nets.standardize(s.z), key)

    def export(self, params: Tree, stats: Tree) -> Tree:
        """Returns the parameters of the net, and the mean and deviation of the embeddings."""
        moments = stats["standardize"]["moments"]
        deviation = jnp.sqrt(moments["variance"])
        return {"mean": moments["mean"], "deviation": deviation, self.sampled: params[self.sampled]}

    def sample_base(self, params: Tree, key: Array, num: int) -> Array:
        """Draws from N(0, I): [num, d]."""
        return jax.random.normal(key, (num, len(params["mean"])))

    def restore(self, params: Tree, y: Array) -> Array:
        """Maps standardized embeddings y [N, d] back to z."""
        return jnp.asarray(params["mean"]) + jnp.asarray(params["deviation"]) * y
