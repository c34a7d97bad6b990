"""Hyperspherical VAE: von Mises-Fisher posteriors, and a uniform prior on the sphere.

Davidson, Falorsi, De Cao, Kipf, Tomczak: Hyperspherical Variational Auto-Encoders (2018). The
gradient through a draw is exact here; theirs differentiates the accepted proposal.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pmjax.errors import UserError
from pmjax.methods import von_mises_fisher as vmf
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, joint_spec
from pmjax.methods.losses import num_values, squared_error
from pmjax.nets.base import Net, Nets
from pmjax.nets.heads import Posterior, Sphere, SphereDecoder

# κ starts near 5·d, where the mean of a draw has length 0.9. A much smaller κ drowns the mean in
# noise before G has learned to use it, and all reconstructions become the same blur.
_INITIAL_KAPPA = 5.0


class Direction(Posterior):
    """E of the posterior q(z|x) = vMF(mean, κ) on the unit sphere; the mean is the embedding."""

    @nn.compact
    def posterior(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps examples [N, …] to the mean direction [N, d] and the concentration κ [N]."""
        out = self.trunk(x, train=train)
        dim = out.shape[-1] - 1
        kappa = 1 + dim * jax.nn.softplus(_INITIAL_KAPPA + out[:, dim])
        return Sphere()(out[:, :dim], train=train), kappa


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters.

    The loss is the negative ELBO in nats, over an example's number of values, times twice the
    variance of p(x|z): its first term is the mean ‖x - x̂‖².
    """

    beta: float = 1.0  # weight of the KL divergence
    variance: float = 0.5  # of the Gaussian p(x|z)

    prior = "sphere_uniform"

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        if build.latent_dim < 2:
            raise UserError(f"latent_dim={build.latent_dim} has no sphere: use 2 or more.")
        E = Net(Direction(build.trunk(build.latent_dim + 1)), build.shape)
        return joint_spec(E, build.decoder(SphereDecoder), self.forward, self.autoencoder_loss)

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """Computes z ~ vMF(mean, κ), x̂ = G(z)."""
        mean, kappa = nets.E.posterior(x)
        z_drawn = vmf.sample(mean, kappa, key)
        x_hat = nets.G(z_drawn)
        return {"x": x, "z": mean, "kappa": kappa, "z_drawn": z_drawn, "x_hat": x_hat}

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """E_q[-log p(x|z)] + β KL(vMF(mean, κ) ‖ uniform)."""
        recon = squared_error(s.x, s.x_hat)
        kl = jnp.mean(vmf.kl_from_uniform(s.z.shape[-1], s.kappa))
        nat = 2 * self.variance / num_values(s.x)
        return recon + nat * self.beta * kl, {"recon": recon, "kl": kl, "kappa": s.kappa.mean()}
