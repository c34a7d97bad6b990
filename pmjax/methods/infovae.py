"""InfoVAE: a VAE whose divergence is divided between each posterior and their mixture.

Zhao, Song, Ermon: InfoVAE: Balancing Learning and Inference in Variational Autoencoders (2019),
with the maximum mean discrepancy for the divergence of q(z) from p(z). α = 0, λ = 1
is the VAE; α = 1, λ > 0 has no KL divergence left: the MMD-VAE, or WAE-MMD with a stochastic E.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode_with_noise
from pmjax.methods.losses import KERNELS, gaussian_kl, mmd, squared_error


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters, named as in the paper.

    α and λ are the paper's, whose loss is in nats and sums over an example's values; all of it is
    divided by their number here, and multiplied by twice the variance of p(x|z): the loss starts
    with the mean ‖x - x̂‖².
    """

    alpha: float = 0.0  # 1 - α is the weight of KL(q(z|x) ‖ N(0, I))
    lambda_: float = 1000.0  # α + λ - 1 is the weight of MMD(q(z), N(0, I))
    variance: float = 0.5  # of the Gaussian p(x|z); less weighs both divergences less
    kernel: str = "rbf"  # exp(-‖a - b‖²/C), or 'imq', C/(C + ‖a - b‖²), with C = 2·latent_dim

    prior = "standard_normal"

    def __post_init__(self):
        if self.kernel not in KERNELS:
            raise errors.unknown("kernel", self.kernel, KERNELS)

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        E, G = plan.posterior(), plan.decoder()
        nat = 2 * self.variance / float(np.prod(plan.shape))
        everyone = partial(collectives.all_gather, axis=plan.axis)
        kernel = partial(KERNELS[self.kernel], scale=2 * plan.latent_dim)

        def autoencoder_loss(params, stats, shared, key):
            """E_q[-log p(x|z)] + (1 - α) KL(q(z|x) ‖ p(z)) + (α + λ - 1) MMD(q(z), p(z))."""
            prior = collectives.sample_batch(jax.random.normal, key, shared["z"].shape, plan.axis)
            recon = squared_error(shared["x"], shared["x_hat"])
            kl = jnp.mean(gaussian_kl(shared["z"], shared["log_variance"]))
            distance = mmd(shared["z_drawn"], prior, kernel, everyone)
            of_one, of_all = 1 - self.alpha, self.alpha + self.lambda_ - 1
            loss = recon + nat * (of_one * kl + of_all * distance)
            return loss, ({"recon": recon, "kl": kl, "mmd": distance}, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        forward = autoencode_with_noise(E[0], G[0], plan.axis)
        return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), (autoencoder,))
