"""Adversarial latent autoencoder: the latent distribution is learned too, as F(z').

Pidhorskyi, Adjeroh, Doretto: Adversarial Latent Autoencoders (2020), algorithm 1. The generator is
G∘F and the discriminator D∘E; only embeddings are reconstructed. The paper's w is z here, as in all
methods, and its z is z'.
"""

import dataclasses

import jax
from jax import Array

from pmjax.distributed.collectives import sample_batch
from pmjax.methods import losses
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared
from pmjax.nets.base import Nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; ‖F(z') - E(G(F(z')))‖² is the mean over latent coordinates.

    F learns slowly, like the mapping of StyleGAN, on which the paper builds: at the rate of the
    other nets the embeddings drift and grow without bound.
    """

    gamma: float = 10.0  # of the gradient penalty R1 on real data
    width: int = 128  # of F's and D's hidden layers
    blocks: int = 2  # residual blocks in each
    mapping_rate: float = 0.01  # F's learning rate over the others'
    b1: float = 0.0  # Adam's momentum, as in the paper

    prior = "mapping"

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E, G, F and D_z, and the objectives that update them."""
        F = build.mapping(width=self.width, blocks=self.blocks)
        D_z = build.latent_critic(width=self.width, blocks=self.blocks, spectral_norm=False)
        nets = {"E": build.encoder(), "G": build.decoder(), "F": F, "D_z": D_z}
        slow = {"F": self.mapping_rate}
        objectives = (
            Objective("critic", ("E", "D_z"), self.critic_loss, b1=self.b1),
            Objective(
                "generator", ("F", "G"), self.generator_loss, b1=self.b1, relative_rates=slow
            ),
            Objective("reciprocity", ("E", "G"), self.reciprocity_loss, b1=self.b1),
        )
        return MethodSpec(nets, self.forward, ("E",), objectives)

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """Computes z = E(x)."""
        return {"x": x, "z": nets.E(x)}

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """softplus(D∘E∘G∘F(z')) + softplus(-D∘E(x)) + γ/2 ‖∇D∘E(x)‖²."""
        x_p = nets.G(generate(nets, s, key), update_stats=False)
        real = nets.D_z(s.z, update_stats=False)
        fake = discriminate(nets, jax.lax.stop_gradient(x_p))
        penalty = losses.gradient_penalty(lambda x: discriminate(nets, x), s.x)
        metrics = {"D_z/real": real.mean(), "D_z/fake": fake.mean(), "r1": penalty}
        return losses.logistic_critic(real, fake) + self.gamma / 2 * penalty, metrics

    def generator_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """softplus(-D∘E∘G∘F(z'))."""
        x_p = nets.G(generate(nets, s, key))
        return losses.logistic_generator(discriminate(nets, x_p)), {}

    def reciprocity_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖F(z') - E(G(F(z')))‖²."""
        z = generate(nets, s, key)
        x_p = nets.G(z, update_stats=False)
        return losses.squared_error(z, nets.E(x_p, update_stats=False)), {}


def generate(nets: Nets, s: Shared, key: Array) -> Array:
    """Draws F(z') for z' ~ N(0, I)."""
    return nets.F(sample_batch(jax.random.normal, key, s.z.shape), update_stats=False)


def discriminate(nets: Nets, x: Array) -> Array:
    """Returns D∘E(x)."""
    return nets.D_z(nets.E(x, update_stats=False), update_stats=False)
