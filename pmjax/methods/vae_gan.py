"""VAE/GAN: the critic's features measure how similar a reconstruction is to its original.

Larsen, Sønderby, Larochelle, Winther: Autoencoding beyond Pixels Using a Learned Similarity Metric
(2016), algorithm 1.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax import Array

from pmjax import errors
from pmjax.distributed.collectives import sample_batch
from pmjax.errors import UserError
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Objective, Shared, autoencode_vae
from pmjax.methods.losses import ADVERSARIAL, gaussian_kl, num_values, squared_error
from pmjax.nets.base import Nets


def _gan(s: Shared) -> Array:
    """L_GAN = log d(x) + log(1 - d(x̂)) + log(1 - d(x_p)), as in the paper's algorithm 1."""
    d_x, d_hat, d_p = (jnp.mean(jax.nn.softplus(d)) for d in (-s.d_x, s.d_hat, s.d_p))
    return -(d_x + d_hat + d_p)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; norms are means over an example's values or features.

    The paper's sums are divided by the number of an example's values: the KL divergence then has
    the weight 1 / that number for the Gaussian of variance 1/2. With features alone, perceptrons
    reconstruct digits as noise; the pixels' error prevents that.

    In the paper, G minimizes L_GAN = log d(x) + log(1 - d(x̂)) + log(1 - d(x_p)), which d maximizes;
    its gradient vanishes where d is confident. (In the paper's algorithm 1, L_GAN is the loss of d,
    and G minimizes γL - L_GAN.) Here, x̂ and x_p count half as much as x, and G maximizes log d(x̂)
    and log d(x_p) instead. `minimax` selects the paper's form.
    """

    kl_weight: float = 1.0  # of the KL divergence, in nats per value
    gamma: float = 10.0  # weight of the similarity against the adversarial loss, for G
    pixel_weight: float = 1.0  # of ‖x - x̂‖² in the similarity; the paper's is 0
    adversarial: str = "logistic"  # the paper's; or 'hinge'
    minimax: bool = False  # whether G minimizes what d maximizes, the paper's L_GAN

    prior = "standard_normal"

    def __post_init__(self) -> None:
        errors.require_known("adversarial loss", self.adversarial, ADVERSARIAL)
        if self.minimax and self.adversarial != "logistic":
            raise UserError("method_args.minimax=true needs method_args.adversarial=logistic.")

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns the nets E, G and d, and the objectives that update them."""
        nets = {"E": build.posterior(), "G": build.decoder(), "d": build.critic()}
        objectives = (
            Objective("critic", ("d",), self.critic_loss),
            Objective("encoder", ("E",), self.encoder_loss),
            Objective("decoder", ("G",), self.decoder_loss),
        )
        return MethodSpec(nets, self.forward, ("E", "G", "d"), objectives)

    def forward(self, nets: Nets, x: Array, key: Array) -> dict[str, Array]:
        """d_l and d of x, of x̂ = G(z), z ~ q(z|x), and of x_p = G(z_p), z_p ~ N(0, I)."""
        noise_key, prior_key = jax.random.split(key)
        shared = autoencode_vae(nets, x, noise_key)
        z_p = sample_batch(jax.random.normal, prior_key, shared["z"].shape)
        x_p = nets.G(z_p, update_stats=False)
        features, d = nets.d.features(jnp.concatenate([x, shared["x_hat"], x_p]))
        f_x, f_hat, _ = jnp.split(features, 3)
        d_x, d_hat, d_p = jnp.split(d, 3)
        return shared | {"f_x": f_x, "f_hat": f_hat, "d_x": d_x, "d_hat": d_hat, "d_p": d_p}

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """-log d(x) - ½ log(1 - d(x̂)) - ½ log(1 - d(x_p)); -L_GAN if `minimax`."""
        critic, _ = ADVERSARIAL[self.adversarial]
        fake = jnp.concatenate([s.d_hat, s.d_p])
        loss = -_gan(s) if self.minimax else critic(s.d_x, fake)
        return loss, {"d/real": s.d_x.mean(), "d/fake": fake.mean()}

    def encoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """KL(q(z|x) ‖ N(0, I)) - log p(d_l(x)|z)."""
        similarity, metrics = self.similarity(s)
        kl = jnp.mean(gaussian_kl(s.z, s.log_variance))
        return self.kl_weight / num_values(s.x) * kl + similarity, metrics | {"kl": kl}

    def decoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """-γ log p(d_l(x)|z) - ½ log d(x̂) - ½ log d(x_p); the last two are L_GAN if `minimax`."""
        _, generator = ADVERSARIAL[self.adversarial]
        fool = _gan(s) if self.minimax else generator(jnp.concatenate([s.d_hat, s.d_p]))
        return self.gamma * self.similarity(s)[0] + fool, {"fool": fool}

    def similarity(self, s: Shared) -> LossValue:
        """-log p(d_l(x)|z) = ‖d_l(x) - d_l(x̂)‖², plus the weighted ‖x - x̂‖² of pixels."""
        features, recon = squared_error(s.f_x, s.f_hat), squared_error(s.x, s.x_hat)
        return features + self.pixel_weight * recon, {"recon": recon, "similarity": features}
