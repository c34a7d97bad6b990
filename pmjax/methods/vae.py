"""Variational autoencoder.

Kingma and Welling: Auto-Encoding Variational Bayes (2014); β by Higgins et al. (2017); the learned
variance is one number, at its optimum in every batch, by Rybkin, Daniilidis, Levine (2021).
"""

import dataclasses

import jax.numpy as jnp
from jax import Array

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, autoencode_vae, joint_spec
from pmjax.methods.losses import gaussian_kl, num_values, squared_error
from pmjax.nets.base import Nets


def gaussian(x: Array, x_hat: Array, variance: float | Array) -> Array:
    """Returns E[-log N(x; x̂, variance)] in nats per value."""
    return (squared_error(x, x_hat) / variance + jnp.log(2 * jnp.pi * variance)) / 2


def gaussian_learned(x: Array, x_hat: Array, variance: float) -> Array:
    """Returns `gaussian` for the variance that minimizes it: the batch's mean squared error."""
    return gaussian(x, x_hat, collectives.mean(squared_error(x, x_hat)) + 1e-8)


def bernoulli(x: Array, x_hat: Array, variance: float) -> Array:
    """Returns E[-log p(x)] in nats per value; x and x̂ in [-1, 1] stand for gray and P(white)."""
    white = jnp.clip((1 + x_hat) / 2, 1e-6, 1 - 1e-6)
    gray = (1 + x) / 2
    return -jnp.mean(gray * jnp.log(white) + (1 - gray) * jnp.log1p(-white))


LIKELIHOODS = {"gaussian": gaussian, "gaussian_learned": gaussian_learned, "bernoulli": bernoulli}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; the loss is the negative ELBO in nats over an example's number of values.

    With the Gaussian of variance 1/2 the loss is ‖x - x̂‖² + β KL, up to a constant. Points have
    few values, which a KL divergence of a few nats outweighs: use a variance of 0.01 or less.
    """

    beta: float = 1.0  # weight of the KL divergence
    likelihood: str = "gaussian"  # p(x|z); or 'gaussian_learned', 'bernoulli' (images only)
    variance: float = 0.5  # of the 'gaussian'

    prior = "standard_normal"

    def __post_init__(self) -> None:
        errors.require_known("likelihood", self.likelihood, LIKELIHOODS)
        if self.variance <= 0:
            raise errors.UserError(f"method_args.variance={self.variance} must be above 0.")

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        if self.likelihood == "bernoulli" and len(build.shape) != 3:
            raise errors.UserError(
                "method_args.likelihood=bernoulli is for images; use gaussian for points."
            )
        return joint_spec(build.posterior(), build.decoder(), autoencode_vae, self.autoencoder_loss)

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """-ELBO = E_q[-log p(x|z)] + β KL(q(z|x) ‖ N(0, I))."""
        nll = LIKELIHOODS[self.likelihood](s.x, s.x_hat, self.variance)
        kl = jnp.mean(gaussian_kl(s.z, s.log_variance))
        size = num_values(s.x)
        metrics = {"recon": squared_error(s.x, s.x_hat), "kl": kl, "elbo": -(size * nll + kl)}
        return nll + self.beta * kl / size, metrics
