"""Autoencoder with an adversarial regularizer and a latent BatchNorm, the paper's stage 1.

Geng, Wang, Chen, Gao: Generative Model without Prior Distribution Matching (arXiv 2009.11016).
"""

import dataclasses
from functools import partial

import jax

from pmjax import errors, nets, parallel
from pmjax.datasets import to_float
from pmjax.losses import absolute_error, squared_error
from pmjax.methods import Plan
from pmjax.step import Game, Player

RECONSTRUCTION = {"squared": squared_error, "absolute": absolute_error}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper; norms are means over an example's values."""

    omega1: float = 0.5  # weight of ‖d(x_μ)‖² in equation (10)
    omega2: float = 0.5  # weight of ‖d(x̂)‖² in equation (10)
    lambda_: float = 0.2  # d's target for a blend of x and x̂, equation (9)
    gamma: float = 0.2  # share of x in that blend
    reconstruction: str = "squared"  # or 'absolute' (L1, as the authors' code)
    batch_norm: bool = True  # ablation: the latent BatchNorm, equation (11)
    regularizer: bool = True  # ablation: d, equation (9), and the ω terms of equation (10)
    critic_repeats: int = 1  # updates of d in each step
    autoencoder_repeats: int = 1  # updates of E and G in each step

    def __post_init__(self):
        if self.reconstruction not in RECONSTRUCTION:
            raise errors.unknown("reconstruction", self.reconstruction, RECONSTRUCTION)

    def game(self, plan: Plan) -> Game:
        """Returns the nets E, G and d, and the players who move them."""
        E, G, d = plan.encoder(batch_norm=self.batch_norm), plan.decoder(), plan.critic()
        call_d = partial(nets.apply, d[0], train=True)
        norm = RECONSTRUCTION[self.reconstruction]

        def forward(params, stats, batch, key):
            x = to_float(batch)
            z, stats_E = nets.update(E[0], params["E"], stats["E"], x)
            x_hat, stats_G = nets.update(G[0], params["G"], stats["G"], z)
            shared = {"x": x, "z": z, "x_hat": x_hat}
            if self.regularizer:
                mu = parallel.draw(jax.random.uniform, key, (len(x),), plan.axis) / 2
                z_mu = mu[:, None] * z + (1 - mu[:, None]) * parallel.next_example(z, plan.axis)
                x_mu = nets.apply(G[0], params["G"], stats["G"], z_mu, train=True)
                shared |= {"mu": mu, "x_mu": x_mu}
            return shared, stats | {"E": stats_E, "G": stats_G}

        def critic_loss(params, stats, shared, key):
            """Equation (9)."""
            x, x_hat, x_mu, mu = (shared[name] for name in ("x", "x_hat", "x_mu", "mu"))
            blend = self.gamma * x + (1 - self.gamma) * x_hat
            d_x, stats_d = nets.update(d[0], params["d"], stats["d"], x)
            d_blend = call_d(params["d"], stats["d"], blend)
            d_mu = call_d(params["d"], stats["d"], x_mu)
            real = squared_error(d_x, 0)
            blended = squared_error(d_blend, self.lambda_)
            mixed = squared_error(d_mu, mu + self.lambda_)
            metrics = {"d/real": real, "d/blend": blended, "d/mix": mixed}
            return real + blended + mixed, (metrics, stats | {"d": stats_d})

        def autoencoder_loss(params, stats, shared, key):
            """Equation (10)."""
            loss = reconstruction = norm(shared["x"], shared["x_hat"])
            metrics = {"recon": reconstruction}
            if self.regularizer:
                fool_mix = squared_error(call_d(params["d"], stats["d"], shared["x_mu"]), 0)
                fool_recon = squared_error(call_d(params["d"], stats["d"], shared["x_hat"]), 0)
                loss += self.omega1 * fool_mix + self.omega2 * fool_recon
                metrics |= {"fool/mix": fool_mix, "fool/recon": fool_recon}
            return loss, (metrics, stats)

        critic = Player("critic", ("d",), critic_loss, plan.optimizer, self.critic_repeats)
        autoencoder = Player(
            "autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer, self.autoencoder_repeats
        )
        if not self.regularizer:
            return Game({"E": E, "G": G}, forward, ("E", "G"), (autoencoder,))
        return Game({"E": E, "G": G, "d": d}, forward, ("E", "G"), (critic, autoencoder))
