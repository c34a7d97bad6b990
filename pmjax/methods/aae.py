"""Adversarial autoencoder: a critic in latent space compares embeddings with draws of the prior.

Makhzani, Shlens, Jaitly, Goodfellow, Frey: Adversarial Autoencoders (2015).
"""

import dataclasses

import jax
from jax import Array

from pmjax import errors
from pmjax.distributed.collectives import sample_batch
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared, autoencode
from pmjax.methods.losses import ADVERSARIAL, squared_error
from pmjax.nets.base import Nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values.

    The paper makes two updates, one for reconstruction and one to fool the critic; here E makes
    one update for the weighted sum.
    """

    weight: float = 0.05  # of the encoder's adversarial loss
    adversarial: str = "logistic"  # or 'hinge'
    width: int = 128  # of the critic's hidden layers
    blocks: int = 2  # residual blocks of the critic
    spectral_norm: bool = True  # on every layer of the critic
    critic_repeats: int = 2  # updates of the critic in each step
    b1: float = 0.0  # Adam's momentum of both objectives; with 0.5 they oscillate

    prior = "standard_normal"

    def __post_init__(self) -> None:
        errors.require_known("adversarial loss", self.adversarial, ADVERSARIAL)

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and D_z, and the objectives that update them."""
        D_z = build.latent_critic(
            width=self.width, blocks=self.blocks, spectral_norm=self.spectral_norm
        )
        nets = {"E": build.encoder(), "G": build.decoder(), "D_z": D_z}
        objectives = (
            Objective("critic", ("D_z",), self.critic_loss, self.critic_repeats, b1=self.b1),
            Objective("autoencoder", ("E", "G"), self.autoencoder_loss, b1=self.b1),
        )
        return MethodSpec(nets, autoencode, ("E", "G"), objectives)

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """-log D_z(z') - log(1 - D_z(E(x))) for z' ~ N(0, I); or the hinge loss."""
        z = jax.lax.stop_gradient(s.z)
        prior = nets.D_z(sample_batch(jax.random.normal, key, z.shape))
        posterior = nets.D_z(z)
        critic, _ = ADVERSARIAL[self.adversarial]
        metrics = {"D_z/prior": prior.mean(), "D_z/posterior": posterior.mean()}
        return critic(prior, posterior), metrics

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² - w log D_z(E(x)); or the hinge loss."""
        _, generator = ADVERSARIAL[self.adversarial]
        fool = generator(nets.D_z(s.z, update_stats=False))
        recon = squared_error(s.x, s.x_hat)
        return recon + self.weight * fool, {"recon": recon, "fool": fool}
