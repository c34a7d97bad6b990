"""Autoencoder with an adversarial regularizer and a latent BatchNorm, the paper's stage 1.

Geng, Wang, Chen, Gao: Generative Model without Prior Distribution Matching (arXiv 2009.11016).
"""

import dataclasses

import jax

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, Rescale, autoencode
from pmjax.methods.losses import absolute_error, squared_error
from pmjax.nets import base as nets

RECONSTRUCTION = {"squared": squared_error, "absolute": absolute_error}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper; norms are means over an example's values."""

    omega1: float = 0.05  # weight of ‖d(x_μ)‖² in equation (10)
    omega2: float = 0.05  # weight of ‖d(x̂)‖² in equation (10)
    lambda_: float = 0.2  # d's target for a blend of x and x̂, equation (9)
    gamma: float = 0.2  # share of x in that blend
    reconstruction: str = "squared"  # or 'absolute' (L1, as the authors' code)
    batch_norm: bool = True  # ablation: the latent BatchNorm, equation (11)
    dispersion: float = 1.0  # ablation, without batch_norm: z = dispersion·E(x), G(z / dispersion)
    regularizer: bool = True  # ablation: d, equation (9), and the ω terms of equation (10)
    critic_repeats: int = 1  # updates of d in each step
    autoencoder_repeats: int = 1  # updates of E and G in each step

    def __post_init__(self):
        if self.reconstruction not in RECONSTRUCTION:
            raise errors.unknown("reconstruction", self.reconstruction, RECONSTRUCTION)
        if not self.dispersion > 0:
            raise UserError(f"method_args.dispersion={self.dispersion} must be above 0.")
        if self.dispersion != 1 and self.batch_norm:
            raise UserError(
                f"method_args.dispersion={self.dispersion} is undone by the latent BatchNorm: add "
                f"--config.method_args.batch_norm=false."
            )

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives who move them."""
        E, G, d = plan.encoder(batch_norm=self.batch_norm), plan.decoder(), plan.critic()
        if self.dispersion != 1:
            E = E[0].clone(norm=Rescale(self.dispersion)), E[1]
            G = Rescale(1 / self.dispersion, G[0]), G[1]
        norm, encode = RECONSTRUCTION[self.reconstruction], autoencode(E[0], G[0])

        def forward(params, stats, batch, key):
            def call(name, net, x):
                return nets.apply(net[0], params[name], stats[name], x, train=True)

            shared, moved = encode(params, stats, batch, key)
            if not self.regularizer:
                return shared, moved
            x, z, x_hat = shared["x"], shared["z"], shared["x_hat"]
            mu = collectives.sample_batch(jax.random.uniform, key, (len(x),), plan.axis) / 2
            z_mu = mu[:, None] * z + (1 - mu[:, None]) * collectives.roll_batch(z, plan.axis)
            x_mu = call("G", G, z_mu)
            # Only d learns from the blend, and E and G alone from d(x_hat), which is on its own.
            blend = jax.lax.stop_gradient(self.gamma * x + (1 - self.gamma) * x_hat)
            (d_x, d_blend, d_mu), stats_d = nets.update_on_several(
                d[0], params["d"], stats["d"], x, blend, x_mu
            )
            d_hat = call("d", d, x_hat)
            shared |= {"mu": mu, "d_x": d_x, "d_blend": d_blend, "d_hat": d_hat, "d_mu": d_mu}
            return shared, moved | {"d": stats_d}

        def critic_loss(params, stats, shared, key):
            """Equation (9)."""
            real = squared_error(shared["d_x"], 0)
            blended = squared_error(shared["d_blend"], self.lambda_)
            mixed = squared_error(shared["d_mu"], shared["mu"] + self.lambda_)
            metrics = {"d/real": real, "d/blend": blended, "d/mix": mixed}
            return real + blended + mixed, (metrics, stats)

        def autoencoder_loss(params, stats, shared, key):
            """Equation (10)."""
            loss = reconstruction = norm(shared["x"], shared["x_hat"])
            metrics = {"recon": reconstruction}
            if self.regularizer:
                fool_mix = squared_error(shared["d_mu"], 0)
                fool_recon = squared_error(shared["d_hat"], 0)
                loss += self.omega1 * fool_mix + self.omega2 * fool_recon
                metrics |= {"fool/mix": fool_mix, "fool/recon": fool_recon}
            return loss, (metrics, stats)

        critic = Objective("critic", ("d",), critic_loss, plan.optimizer, self.critic_repeats)
        autoencoder = Objective(
            "autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer, self.autoencoder_repeats
        )
        if not self.regularizer:
            return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), (autoencoder,))
        everything = {"E": E, "G": G, "d": d}
        return MethodSpec(everything, forward, tuple(everything), (critic, autoencoder))
