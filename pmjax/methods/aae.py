"""Adversarial autoencoder.

Makhzani, Shlens, Jaitly, Goodfellow, Frey: Adversarial Autoencoders (2015). A critic in latent
space tells draws of the prior from embeddings; the encoder deceives it.
"""

import dataclasses
from functools import partial

import jax

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode
from pmjax.methods.losses import ADVERSARIAL, squared_error
from pmjax.nets import base as nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values.

    The paper makes two updates, one for reconstruction and one to deceive; here E makes one for
    the weighted sum.
    """

    weight: float = 0.05  # of the encoder's adversarial loss
    adversarial: str = "logistic"  # or 'hinge'
    width: int = 128  # of the critic's hidden layers
    blocks: int = 2  # residual blocks of the critic
    spectral_norm: bool = True  # on every layer of the critic
    critic_repeats: int = 2  # updates of the critic in each step
    b1: float = 0.0  # Adam's momentum of both objectives; with 0.5 they circle and miss each other

    prior = "standard_normal"

    def __post_init__(self):
        if self.adversarial not in ADVERSARIAL:
            raise errors.unknown("adversarial loss", self.adversarial, ADVERSARIAL)

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and D_z, and the objectives who move them."""
        E, G = plan.encoder(batch_norm=False), plan.decoder()
        D = plan.latent_critic(
            width=self.width, blocks=self.blocks, spectral_norm=self.spectral_norm
        )
        tell, deceive = ADVERSARIAL[self.adversarial]

        def critic_loss(params, stats, shared, key):
            """D_z(z) for z ~ p(z) against D_z(E(x))."""
            z = jax.lax.stop_gradient(shared["z"])
            call = partial(nets.update, D[0], params["D_z"])
            prior, stats_D = call(
                stats["D_z"], collectives.sample_batch(jax.random.normal, key, z.shape, plan.axis)
            )
            posterior, stats_D = call(stats_D, z)
            metrics = {"D_z/prior": prior.mean(), "D_z/posterior": posterior.mean()}
            return tell(prior, posterior), (metrics, stats | {"D_z": stats_D})

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖² and the encoder's side of the adversarial loss."""
            said = nets.apply(D[0], params["D_z"], stats["D_z"], shared["z"], train=True)
            recon, fool = squared_error(shared["x"], shared["x_hat"]), deceive(said)
            return recon + self.weight * fool, ({"recon": recon, "fool": fool}, stats)

        optimizer = partial(plan.optimizer, b1=self.b1)
        objectives = (
            Objective("critic", ("D_z",), critic_loss, optimizer, self.critic_repeats),
            Objective("autoencoder", ("E", "G"), autoencoder_loss, optimizer),
        )
        forward = autoencode(E[0], G[0])
        return MethodSpec({"E": E, "G": G, "D_z": D}, forward, ("E", "G"), objectives)
