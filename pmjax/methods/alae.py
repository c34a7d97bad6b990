"""Adversarial latent autoencoder: the latent distribution is learned, too, as F(z).

Pidhorskyi, Adjeroh, Doretto: Adversarial Latent Autoencoders (2020), algorithm 1. The generator is
G∘F and the discriminator D∘E; reconstruction is asked for in latent space only. The paper's w is z
here, as everywhere else, and its z is z'.
"""

import dataclasses
from functools import partial

import jax
import optax

from pmjax.datasets.batches import to_float
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective
from pmjax.methods.losses import (
    gradient_penalty,
    logistic_critic,
    logistic_generator,
    squared_error,
)
from pmjax.nets import base as nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; ‖F(z') - E(G(F(z')))‖² is the mean over latent coordinates.

    F learns slowly, as the mapping of the StyleGAN that the paper builds on: at the others' rate
    the embeddings drift and grow without bound.
    """

    gamma: float = 10.0  # of the gradient penalty R1 on real data
    width: int = 128  # of F's and D's hidden layers
    blocks: int = 2  # residual blocks in each
    mapping_rate: float = 0.01  # F's learning rate over the others'
    b1: float = 0.0  # Adam's momentum, as in the paper

    prior = "mapping"

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E, G, F and D_z, and the objectives who move them."""
        E, G = plan.encoder(batch_norm=False), plan.decoder()
        F = plan.mapping(width=self.width, blocks=self.blocks)
        D = plan.latent_critic(width=self.width, blocks=self.blocks, spectral_norm=False)
        everything = {"E": E, "G": G, "F": F, "D_z": D}

        def call(name, x, params, stats):
            return nets.apply(everything[name][0], params[name], stats[name], x, train=True)

        def forward(params, stats, batch, key):
            x = to_float(batch)
            z, stats_E = nets.update(E[0], params["E"], stats["E"], x)
            return {"x": x, "z": z}, stats | {"E": stats_E}

        def generate(params, stats, shared, key):
            """Returns F(z'), G(F(z')) and G's statistics for z' ~ N(0, I)."""
            noise = collectives.sample_batch(jax.random.normal, key, shared["z"].shape, plan.axis)
            z = call("F", noise, params, stats)
            return z, *nets.update(G[0], params["G"], stats["G"], z)

        def judge(x, params, stats):
            return call("D_z", call("E", x, params, stats), params, stats)

        def critic_loss(params, stats, shared, key):
            """softplus(D∘E∘G∘F(z')) + softplus(-D∘E(x)) + γ/2 ‖∇D∘E(x)‖²."""
            _, x_p, _ = generate(params, stats, shared, key)
            real = call("D_z", shared["z"], params, stats)
            fake = judge(jax.lax.stop_gradient(x_p), params, stats)
            penalty = gradient_penalty(lambda x: judge(x, params, stats), shared["x"])
            metrics = {"D_z/real": real.mean(), "D_z/fake": fake.mean(), "r1": penalty}
            return logistic_critic(real, fake) + self.gamma / 2 * penalty, (metrics, stats)

        def generator_loss(params, stats, shared, key):
            """softplus(-D∘E∘G∘F(z'))."""
            _, x_p, stats_G = generate(params, stats, shared, key)
            return logistic_generator(judge(x_p, params, stats)), ({}, stats | {"G": stats_G})

        def latent_loss(params, stats, shared, key):
            """‖F(z') - E(G(F(z')))‖²."""
            z, x_p, _ = generate(params, stats, shared, key)
            loss = squared_error(z, call("E", x_p, params, stats))
            return loss, ({}, stats)

        optimizer = partial(plan.optimizer, b1=self.b1)

        def of_generator(repeats):
            slower = optax.masked(optax.scale(self.mapping_rate), {"F": True, "G": False})
            return optax.chain(optimizer(repeats), slower)

        objectives = (
            Objective("critic", ("E", "D_z"), critic_loss, optimizer),
            Objective("generator", ("F", "G"), generator_loss, of_generator),
            Objective("reciprocity", ("E", "G"), latent_loss, optimizer),
        )
        return MethodSpec(everything, forward, ("E",), objectives)
