"""Variational autoencoder.

Kingma and Welling: Auto-Encoding Variational Bayes (2014); β by Higgins et al. (2017); the learned
variance is one number, at its optimum in every batch, by Rybkin, Daniilidis, Levine (2021).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode_with_noise
from pmjax.methods.losses import gaussian_kl, squared_error

Array = jax.Array


def gaussian(x: Array, x_hat: Array, variance: float | Array, axis: str | None) -> Array:
    """Returns E[-log N(x; x̂, variance)] in nats a value."""
    return (squared_error(x, x_hat) / variance + jnp.log(2 * jnp.pi * variance)) / 2


def gaussian_learned(x: Array, x_hat: Array, variance: float, axis: str | None) -> Array:
    """Returns the same for the variance that makes it least: the batch's mean squared error."""
    best = collectives.mean(squared_error(x, x_hat), axis) + 1e-8
    return gaussian(x, x_hat, best, axis)


def bernoulli(x: Array, x_hat: Array, variance: float, axis: str | None) -> Array:
    """Returns E[-log p(x)] in nats a value; x and x̂ within [-1, 1] stand for grey and P(white)."""
    white = jnp.clip((1 + x_hat) / 2, 1e-6, 1 - 1e-6)
    grey = (1 + x) / 2
    return -jnp.mean(grey * jnp.log(white) + (1 - grey) * jnp.log1p(-white))


LIKELIHOODS = {
    "gaussian": gaussian,
    "gaussian_learned": gaussian_learned,
    "bernoulli": bernoulli,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; the loss is the negative ELBO in nats over an example's number of values.

    With the Gaussian of variance 1/2 it is ‖x - x̂‖² + β KL, up to a constant. For points, whose few
    values a KL divergence of some nats outweighs, take a variance of 0.01 or less.
    """

    beta: float = 1.0  # weight of the KL divergence
    likelihood: str = "gaussian"  # p(x|z); or 'gaussian_learned', 'bernoulli' (images only)
    variance: float = 0.5  # of the 'gaussian'

    prior = "standard_normal"

    def __post_init__(self):
        if self.likelihood not in LIKELIHOODS:
            raise errors.unknown("likelihood", self.likelihood, LIKELIHOODS)
        if self.variance <= 0:
            raise UserError(f"method_args.variance={self.variance} must be above 0.")

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        if self.likelihood == "bernoulli" and len(plan.shape) != 3:
            raise UserError("method_args.likelihood=bernoulli is for images; points take gaussian.")
        E, G = plan.posterior(), plan.decoder()
        likelihood, size = LIKELIHOODS[self.likelihood], float(np.prod(plan.shape))

        def autoencoder_loss(params, stats, shared, key):
            """-ELBO = E_q[-log p(x|z)] + β KL(q(z|x) ‖ N(0, I))."""
            x, x_hat = shared["x"], shared["x_hat"]
            nll = likelihood(x, x_hat, self.variance, plan.axis)
            kl = jnp.mean(gaussian_kl(shared["z"], shared["log_variance"]))
            metrics = {"recon": squared_error(x, x_hat), "kl": kl, "elbo": -(size * nll + kl)}
            return nll + self.beta * kl / size, (metrics, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        forward = autoencode_with_noise(E[0], G[0], plan.axis)
        return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), (autoencoder,))
