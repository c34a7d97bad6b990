"""A normalizing flow: affine couplings, each an invertible map with a known Jacobian.

Dinh, Sohl-Dickstein, Bengio: Density Estimation Using Real NVP (2017).
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec
from pmjax.nets.base import Net, Nets, apply
from pmjax.priors import standardized
from pmjax.priors.base import TrainedPrior

Array = jax.Array


class Couplings(nn.Module):
    """f: z to u. Each coupling scales and shifts half of the coordinates, given the other half.

    The half is a fixed random choice; every second coupling has the complement of the one before.
    """

    dim: int
    couplings: int
    width: int
    layers: int

    def setup(self) -> None:
        """Makes one perceptron for each coupling, initialized to the identity map."""
        self.nets = [self._net() for _ in range(self.couplings)]

    def _net(self) -> nn.Module:
        hidden = [f for _ in range(self.layers) for f in (nn.Dense(self.width), nn.relu)]
        return nn.Sequential([*hidden, nn.Dense(2 * self.dim, kernel_init=nn.initializers.zeros)])

    def _given(self, index: int) -> np.ndarray:
        """Returns which coordinates the coupling does not change: booleans [d]."""
        order = np.random.default_rng(index // 2).permutation(self.dim)
        return (order % 2 == 0) != bool(index % 2)

    def _terms(self, index: int, z: Array) -> tuple[Array, Array]:
        """Returns log-scales and shifts [N, d], 0 for the given coordinates."""
        given = self._given(index)
        scale, shift = jnp.split(self.nets[index](jnp.where(given, z, 0)), 2, -1)
        return jnp.where(given, 0, 2 * jnp.tanh(scale / 2)), jnp.where(given, 0, shift)

    def __call__(self, z: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps z [N, d] to u [N, d]; also returns log |det ∂u/∂z| [N]."""
        log_det = jnp.zeros(len(z))
        for index in range(self.couplings):
            scale, shift = self._terms(index, z)
            z = z * jnp.exp(scale) + shift
            log_det += scale.sum(-1)
        return z, log_det

    def inverse(self, u: Array, *, train: bool) -> Array:
        """Maps u [N, d] to z."""
        for index in reversed(range(self.couplings)):
            scale, shift = self._terms(index, u)
            u = (u - shift) * jnp.exp(-scale)
        return u


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(TrainedPrior):
    """A flow from the standardized embeddings to N(0, I), by maximum likelihood."""

    couplings: int = 8  # affine coupling layers
    width: int = 128  # of the hidden layers
    layers: int = 2  # hidden layers of each coupling
    noise: float = 0.05  # added to the data: a density on a subspace has no maximum
    b1: float = 0.9  # of Adam, instead of config.stage2.optimizer.b1

    def _flow(self, latent_dim: int) -> Couplings:
        return Couplings(latent_dim, self.couplings, self.width, self.layers)

    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the net f, and the objective that updates it."""
        f = Net(self._flow(latent_dim), (latent_dim,))
        return standardized.spec({"f": f}, self.loss, latent_dim, b1=self.b1)

    def loss(self, nets: Nets, z: Array, key: Array) -> LossValue:
        """E[-log p(z + ε)] / d up to a constant: -log p(z) = ‖f(z)‖²/2 - log |det ∂f/∂z|."""
        z = z + self.noise * collectives.sample_batch(jax.random.normal, key, z.shape)
        u, log_det = nets.f(z)
        return (jnp.square(u).sum(-1) / 2 - log_det).mean() / z.shape[-1], {}

    def export(self, params: dict[str, Any], stats: dict[str, Any]) -> dict[str, Any]:
        """Returns f's parameters, and the standardization."""
        return standardized.export(params, stats, "f")

    def sample_base(self, params: dict[str, Any], key: Array, num: int) -> Array:
        """Draws u [num, d]."""
        return jax.random.normal(key, (num, len(params["mean"])))

    def sample(self, params: dict[str, Any], key: Array, num: int) -> Array:
        """Draws f⁻¹(u) [num, d], with u as `sample_base` draws it for this key."""
        u = self.sample_base(params, key, num)
        f = self._flow(u.shape[1])
        return standardized.restore(params, apply(f, params["f"], {}, u, method="inverse"))
