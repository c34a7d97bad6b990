"""Hyperspherical VAE: von Mises-Fisher posteriors, and a uniform prior on the sphere.

Davidson, Falorsi, De Cao, Kipf, Tomczak: Hyperspherical Variational Auto-Encoders (2018). The
gradient through a draw is exact here; theirs differentiates the accepted proposal.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.methods import von_mises_fisher as vmf
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, Sphere
from pmjax.methods.losses import squared_error
from pmjax.nets import base as nets

Array = jax.Array

# κ starts near 5·d, with draws whose mean is 0.9 long. Much less drowns the mean in noise before
# G has learned to use it, and everything becomes one blur.
_START = 5.0


class Direction(nn.Module):
    """E of the posterior q(z|x) = vMF(mean, κ) on the unit sphere; its mean is the embedding."""

    trunk: nn.Module

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to the mean direction [N, d]."""
        return self.posterior(x, train=train)[0]

    @nn.compact
    def posterior(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps examples [N, …] to the mean direction [N, d] and the concentration κ [N]."""
        out = self.trunk(x, train=train)
        dim = out.shape[-1] - 1
        kappa = 1 + dim * jax.nn.softplus(_START + out[:, dim])
        return Sphere()(out[:, :dim], train=train), kappa


class ScaledDecoder(nn.Module):
    """G; the net inside sees a sphere of radius √d, whose coordinates have variance one."""

    decoder: nn.Module

    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to examples [N, …]."""
        return self.decoder(z.shape[-1] ** 0.5 * z, train=train)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters.

    The loss is the negative ELBO in nats, over an example's number of values, times twice the
    variance of p(x|z): it starts with the mean ‖x - x̂‖².
    """

    beta: float = 1.0  # weight of the KL divergence
    variance: float = 0.5  # of the Gaussian p(x|z)

    prior = "sphere_uniform"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        if plan.latent_dim < 2:
            raise UserError(f"latent_dim={plan.latent_dim} has no sphere: take 2 or more.")
        E = Direction(plan.trunk(plan.latent_dim + 1)), plan.shape
        decoder, latent = plan.decoder()
        G = ScaledDecoder(decoder), latent
        nat = 2 * self.variance / float(np.prod(plan.shape))

        def forward(params, stats, batch, key):
            """The draw z ~ vMF(mean, κ) of each posterior, and x̂ = G(z)."""
            x = to_float(batch)
            (mean, kappa), stats_E = nets.update(
                E[0], params["E"], stats["E"], x, method="posterior"
            )
            z_drawn = vmf.sample(mean, kappa, key, plan.axis)
            x_hat, stats_G = nets.update(G[0], params["G"], stats["G"], z_drawn)
            shared = {"x": x, "z": mean, "kappa": kappa, "z_drawn": z_drawn, "x_hat": x_hat}
            return shared, stats | {"E": stats_E, "G": stats_G}

        def autoencoder_loss(params, stats, shared, key):
            """E_q[-log p(x|z)] + β KL(vMF(mean, κ) ‖ uniform)."""
            recon = squared_error(shared["x"], shared["x_hat"])
            kl = jnp.mean(vmf.kl_from_uniform(plan.latent_dim, shared["kappa"]))
            metrics = {"recon": recon, "kl": kl, "kappa": shared["kappa"].mean()}
            return recon + nat * self.beta * kl, (metrics, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), (autoencoder,))
