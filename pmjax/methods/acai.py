"""Adversarially constrained autoencoder interpolation: a critic estimates how mixed an image is.

Berthelot, Raffel, Roy, Goodfellow: Understanding and Improving Interpolation in Autoencoders via
an Adversarial Regularizer (2019), section 2.
"""

import dataclasses

import jax
from jax import Array

from pmjax.distributed.collectives import roll_batch, sample_batch
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared
from pmjax.methods.losses import squared_error
from pmjax.nets.base import Nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper; norms are means over an example's values.

    The defaults are those of the authors' code, which also takes means.
    """

    lambda_: float = 0.5  # weight of ‖d(x_α)‖² for the autoencoder
    gamma: float = 0.2  # share of x in the blend that d must rate as not mixed

    prior = "gmm"  # the paper does not sample

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives that update them."""
        nets = {"E": build.encoder(), "G": build.decoder(), "d": build.critic()}
        objectives = (
            Objective("critic", ("d",), self.critic_loss),
            Objective("autoencoder", ("E", "G"), self.autoencoder_loss),
        )
        return MethodSpec(nets, self.forward, ("E", "G", "d"), objectives)

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """x_α = G(α z₁ + (1 - α) z₂), α ~ U[0, ½]; d of x_α and of γx + (1 - γ)x̂."""
        z = nets.E(x)
        x_hat = nets.G(z)
        alpha = sample_batch(jax.random.uniform, key, (len(x),)) / 2
        z_alpha = alpha[:, None] * z + (1 - alpha[:, None]) * roll_batch(z)
        x_alpha = nets.G(z_alpha, update_stats=False)
        d_blend = nets.d(self.gamma * x + (1 - self.gamma) * x_hat)
        d_alpha = nets.d(x_alpha, update_stats=False)
        critic = {"alpha": alpha, "d_blend": d_blend, "d_alpha": d_alpha}
        return {"x": x, "z": z, "x_hat": x_hat, **critic}

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖d(x_α) - α‖² + ‖d(γx + (1 - γ)x̂)‖²."""
        mix, real = squared_error(s.d_alpha, s.alpha), squared_error(s.d_blend, 0)
        return mix + real, {"d/mix": mix, "d/real": real}

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² + λ ‖d(x_α)‖²."""
        recon, fool = squared_error(s.x, s.x_hat), squared_error(s.d_alpha, 0)
        return recon + self.lambda_ * fool, {"recon": recon, "fool": fool}
