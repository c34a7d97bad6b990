"""A normalizing flow: affine couplings, each an invertible map with a known Jacobian.

Dinh, Sohl-Dickstein, Bengio: Density Estimation Using Real NVP (2017).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pmjax.distributed import collectives
from pmjax.methods.base import LossValue
from pmjax.nets.base import Net, Nets, apply
from pmjax.priors.base import Array, Tree
from pmjax.priors.standardized import StandardizedPrior


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

    def _terms(self, index: int, z: Array) -> tuple[Array, Array]:
        """Returns log-scales and shifts [N, d], 0 for the given coordinates."""
        order = np.random.default_rng(index // 2).permutation(self.dim)
        given = (order % 2 == 0) != bool(index % 2)  # the coordinates that do not change
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
class Prior(StandardizedPrior):
    """A flow from the standardized embeddings to N(0, I), by maximum likelihood."""

    couplings: int = 8  # affine coupling layers
    width: int = 128  # of the hidden layers
    layers: int = 2  # hidden layers of each coupling
    noise: float = 0.05  # added to the data: a density on a subspace has no maximum
    b1: float = 0.9  # of Adam, instead of config.stage2.optimizer.b1
    sampled = "f"

    def _flow(self, latent_dim: int) -> Couplings:
        return Couplings(latent_dim, self.couplings, self.width, self.layers)

    def nets(self, latent_dim: int) -> dict[str, Net]:
        """Returns the net f."""
        return {"f": Net(self._flow(latent_dim), (latent_dim,))}

    def loss(self, nets: Nets, y: Array, key: Array) -> LossValue:
        """E[-log p(y + ε)] / d up to a constant: -log p(y) = ‖f(y)‖²/2 - log |det ∂f/∂y|."""
        y = y + self.noise * collectives.sample_batch(jax.random.normal, key, y.shape)
        u, log_det = nets.f(y)
        return (jnp.square(u).sum(-1) / 2 - log_det).mean() / y.shape[-1], {}

    def sample(self, params: Tree, key: Array, num: int) -> Array:
        """Draws f⁻¹(u) [num, d], with u as `sample_base` draws it for this key."""
        u = self.sample_base(params, key, num)
        f = self._flow(u.shape[1])
        return self.restore(params, apply(f, params["f"], {}, u, method="inverse"))
