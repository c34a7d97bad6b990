"""InfoVAE: a VAE with separate weights for the posteriors' divergence and their mixture's.

Zhao, Song, Ermon: InfoVAE: Balancing Learning and Inference in Variational Autoencoders (2019),
with the maximum mean discrepancy as the divergence of q(z) from p(z). α = 0, λ = 1 is the VAE;
α = 1, λ > 0 has no KL divergence: the MMD-VAE, or WAE-MMD with a stochastic E.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from pmjax import errors
from pmjax.distributed.collectives import sample_batch
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, autoencode_vae, joint_spec
from pmjax.methods.losses import KERNELS, gaussian_kl, mmd, num_values, squared_error
from pmjax.nets.base import Nets


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper.

    The paper's loss is in nats and sums over an example's values. Here it is divided by their
    number and multiplied by twice the variance of p(x|z): its first term is the mean ‖x - x̂‖².
    """

    alpha: float = 0.0  # 1 - α is the weight of KL(q(z|x) ‖ N(0, I))
    lambda_: float = 1000.0  # α + λ - 1 is the weight of MMD(q(z), N(0, I))
    variance: float = 0.5  # of the Gaussian p(x|z); a smaller one weighs both divergences less
    kernel: str = "rbf"  # exp(-‖a - b‖²/C), or 'imq', C/(C + ‖a - b‖²), with C = 2·latent_dim

    prior = "standard_normal"

    def __post_init__(self) -> None:
        errors.require_known("kernel", self.kernel, KERNELS)

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        return joint_spec(build.posterior(), build.decoder(), autoencode_vae, self.autoencoder_loss)

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """E_q[-log p(x|z)] + (1 - α) KL(q(z|x) ‖ p(z)) + (α + λ - 1) MMD(q(z), p(z))."""
        prior = sample_batch(jax.random.normal, key, s.z.shape)
        recon = squared_error(s.x, s.x_hat)
        kl = jnp.mean(gaussian_kl(s.z, s.log_variance))
        kernel = partial(KERNELS[self.kernel], scale=2 * s.z.shape[-1])
        distance = mmd(s.z_drawn, prior, kernel)
        divergence = (1 - self.alpha) * kl + (self.alpha + self.lambda_ - 1) * distance
        nat = 2 * self.variance / num_values(s.x)
        return recon + nat * divergence, {"recon": recon, "kl": kl, "mmd": distance}
