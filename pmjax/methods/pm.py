"""Autoencoder with an adversarial regularizer and a latent BatchNorm: the paper's stage 1.

Geng, Wang, Chen, Gao: Generative Model without Prior Distribution Matching (arXiv 2009.11016).
"""

import dataclasses
from functools import partial

import jax
from jax import Array

from pmjax import errors
from pmjax.distributed.collectives import roll_batch, sample_batch
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared
from pmjax.methods.losses import RECONSTRUCTION, squared_error
from pmjax.nets.base import Nets
from pmjax.nets.heads import Rescale


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper; norms are means over an example's values."""

    omega1: float = 0.05  # weight of |d(x_μ)|² in equation (10)
    omega2: float = 0.05  # weight of |d(x̂)|² in equation (10)
    lambda_: float = 0.2  # d's target for a blend of x and x̂, equation (9)
    gamma: float = 0.2  # share of x in that blend
    reconstruction: str = "squared"  # or 'absolute' (L1, as the authors' code)
    batch_norm: bool = True  # ablation: the latent BatchNorm, equation (11)
    dispersion: float = 1.0  # ablation, without batch_norm: z = dispersion·E(x), G(z / dispersion)
    regularizer: bool = True  # ablation: d, equation (9), and the ω terms of equation (10)
    critic_repeats: int = 1  # updates of d in each step
    autoencoder_repeats: int = 1  # updates of E and G in each step

    def __post_init__(self) -> None:
        errors.require_known("reconstruction", self.reconstruction, RECONSTRUCTION)
        if not self.dispersion > 0:
            raise errors.UserError(f"method_args.dispersion={self.dispersion} must be above 0.")
        if self.dispersion != 1 and self.batch_norm:
            raise errors.UserError(
                f"method_args.dispersion={self.dispersion} is undone by the latent BatchNorm: add "
                f"--config.method_args.batch_norm=false."
            )

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives that update them."""
        E = build.encoder(build.latent_norm() if self.batch_norm else None)
        G, d = build.decoder(), build.critic()
        if self.dispersion != 1:
            E = build.encoder(Rescale(self.dispersion))
            G = build.decoder(partial(Rescale, 1 / self.dispersion))
        critic = Objective("critic", ("d",), self.critic_loss, self.critic_repeats)
        autoencoder = Objective(
            "autoencoder", ("E", "G"), self.autoencoder_loss, self.autoencoder_repeats
        )
        if not self.regularizer:
            return MethodSpec({"E": E, "G": G}, self.forward, ("E", "G"), (autoencoder,))
        nets = {"E": E, "G": G, "d": d}
        return MethodSpec(nets, self.forward, ("E", "G", "d"), (critic, autoencoder))

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """x̂ = G(E(x)), x_μ = G(μ z₁ + (1 - μ) z₂) with μ ~ U[0, ½], and what d says of them."""
        z = nets.E(x)  # (11)
        x_hat = nets.G(z)
        if not self.regularizer:
            return {"x": x, "z": z, "x_hat": x_hat}
        mu = sample_batch(jax.random.uniform, key, (len(x),)) / 2
        z_mu = mu[:, None] * z + (1 - mu[:, None]) * roll_batch(z)
        x_mu = nets.G(z_mu, update_stats=False)
        # The critic's loss uses d of these three. Only the autoencoder's loss uses d(x̂).
        blend = jax.lax.stop_gradient(self.gamma * x + (1 - self.gamma) * x_hat)
        d_x, d_blend, d_mu = nets.d.on_each(x, blend, x_mu)
        d_hat = nets.d(x_hat, update_stats=False)
        critic = {"mu": mu, "d_x": d_x, "d_blend": d_blend, "d_hat": d_hat, "d_mu": d_mu}
        return {"x": x, "z": z, "x_hat": x_hat, **critic}

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """|d(x)|² + |d(γx + (1 - γ)x̂) - λ|² + |d(x_μ) - μ - λ|², equation (9)."""
        real = squared_error(s.d_x, 0)
        blend = squared_error(s.d_blend, self.lambda_)
        mix = squared_error(s.d_mu, s.mu + self.lambda_)
        return real + blend + mix, {"d/real": real, "d/blend": blend, "d/mix": mix}

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² + ω₁|d(x_μ)|² + ω₂|d(x̂)|², equation (10)."""
        recon = RECONSTRUCTION[self.reconstruction](s.x, s.x_hat)
        if not self.regularizer:
            return recon, {"recon": recon}
        fool_mix, fool_recon = squared_error(s.d_mu, 0), squared_error(s.d_hat, 0)
        regularizer = self.omega1 * fool_mix + self.omega2 * fool_recon
        return recon + regularizer, {"recon": recon, "fool/mix": fool_mix, "fool/recon": fool_recon}
