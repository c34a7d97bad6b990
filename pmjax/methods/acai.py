"""Adversarially constrained autoencoder interpolation: a critic tells how far from data one is.

Berthelot, Raffel, Roy, Goodfellow: Understanding and Improving Interpolation in Autoencoders via
an Adversarial Regularizer (2019), section 2.
"""

import dataclasses

import jax

from pmjax.datasets.batches import to_float
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective
from pmjax.methods.losses import squared_error
from pmjax.nets import base as nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper; norms are means over an example's values.

    The defaults are the authors' own, whose code takes means, too.
    """

    lambda_: float = 0.5  # weight of ‖d(x_α)‖² for the autoencoder
    gamma: float = 0.2  # share of x in what d must take for real

    prior = "gmm"  # the paper does not sample

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives who move them."""
        E, G, d = plan.encoder(batch_norm=False), plan.decoder(), plan.critic()

        def forward(params, stats, batch, key):
            """x_α = G(α z₁ + (1 - α) z₂), α ~ U[0, 0.5]; and d on it and on γx + (1 - γ)x̂."""
            x = to_float(batch)
            z, stats_E = nets.update(E[0], params["E"], stats["E"], x)
            x_hat, stats_G = nets.update(G[0], params["G"], stats["G"], z)
            alpha = collectives.sample_batch(jax.random.uniform, key, (len(x),), plan.axis) / 2
            other = collectives.roll_batch(z, plan.axis)
            z_alpha = alpha[:, None] * z + (1 - alpha[:, None]) * other
            x_alpha = nets.apply(G[0], params["G"], stats["G"], z_alpha, train=True)
            blend = self.gamma * x + (1 - self.gamma) * x_hat
            d_blend, stats_d = nets.update(d[0], params["d"], stats["d"], blend)
            d_alpha = nets.apply(d[0], params["d"], stats["d"], x_alpha, train=True)
            shared = {"x": x, "z": z, "x_hat": x_hat, "alpha": alpha}
            shared |= {"d_blend": d_blend, "d_alpha": d_alpha}
            return shared, stats | {"E": stats_E, "G": stats_G, "d": stats_d}

        def critic_loss(params, stats, shared, key):
            """‖d(x_α) - α‖² + ‖d(γx + (1 - γ)x̂)‖²."""
            mixed = squared_error(shared["d_alpha"], shared["alpha"])
            real = squared_error(shared["d_blend"], 0)
            return mixed + real, ({"d/mix": mixed, "d/real": real}, stats)

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖² + λ ‖d(x_α)‖²."""
            recon = squared_error(shared["x"], shared["x_hat"])
            fool = squared_error(shared["d_alpha"], 0)
            return recon + self.lambda_ * fool, ({"recon": recon, "fool": fool}, stats)

        objectives = (
            Objective("critic", ("d",), critic_loss, plan.optimizer),
            Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer),
        )
        everything = {"E": E, "G": G, "d": d}
        return MethodSpec(everything, forward, tuple(everything), objectives)
