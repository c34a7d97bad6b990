"""Losses of arrays, averaged over the batch and over the values of an example."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pmjax.distributed import collectives


def num_values(x: Array) -> int:
    """Returns the number of values of one example of a batch [N, …]."""
    return x.size // len(x)


def squared_error(a: Array, b: Array | float) -> Array:
    """Returns the mean of (a - b)² over all values."""
    return jnp.mean(jnp.square(a - b))


def absolute_error(a: Array, b: Array | float) -> Array:
    """Returns the mean of |a - b| over all values."""
    return jnp.mean(jnp.abs(a - b))


RECONSTRUCTION = {"squared": squared_error, "absolute": absolute_error}


def hinge_critic(real: Array, fake: Array) -> Array:
    """Returns E[relu(1 - D(real))] + E[relu(1 + D(fake))], equation (12) of Geng et al."""
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def hinge_generator(fake: Array) -> Array:
    """Returns E[-D(fake)], equation (13) of Geng et al."""
    return -jnp.mean(fake)


def logistic_critic(real: Array, fake: Array) -> Array:
    """Returns -E[log σ(D(real))] - E[log(1 - σ(D(fake)))] for logits D (Goodfellow et al. 2014)."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def logistic_generator(fake: Array) -> Array:
    """Returns -E[log σ(D(fake))], the non-saturating loss (Goodfellow et al. 2014)."""
    return jnp.mean(jax.nn.softplus(-fake))


# The critic's loss and the generator's loss.
ADVERSARIAL = {
    "hinge": (hinge_critic, hinge_generator),
    "logistic": (logistic_critic, logistic_generator),
}


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """Returns KL(N(mean, variance) ‖ N(0, I)) in nats for each example: [N, d] to [N]."""
    variance = jnp.exp(log_variance)
    return jnp.sum(jnp.square(mean) + variance - 1 - log_variance, axis=-1) / 2


def gradient_penalty(fn: Callable[[Array], Array], x: Array) -> Array:
    """Returns E[‖∇fn(x)‖²], summed over an example's values.

    `fn` maps examples [N, …] to numbers [N], each a function of its own example only.
    """
    gradient = jax.grad(lambda x: jnp.sum(fn(x)))(x)
    return jnp.sum(jnp.square(gradient)) / len(x)


def imq(squared_distance: Array, scale: float) -> Array:
    """Returns the inverse multiquadratic kernel C/(C + ‖x - y‖²) for C = `scale`."""
    return scale / (scale + squared_distance)


def rbf(squared_distance: Array, scale: float) -> Array:
    """Returns the Gaussian kernel exp(-‖x - y‖²/C) for C = `scale`."""
    return jnp.exp(-squared_distance / scale)


KERNELS = {"imq": imq, "rbf": rbf}


def mmd(a: Array, b: Array, kernel: Callable[[Array], Array]) -> Array:
    """Returns the unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012).

    `a` and `b` are rows [N, d] of global batches; `kernel` maps squared distances to similarities.
    """
    all_a, all_b = collectives.all_gather(a), collectives.all_gather(b)
    num = len(all_a)

    def others(x: Array, y: Array) -> Array:  # mean similarity to all other examples
        return (jnp.sum(kernel(_squared_distances(x, y)), -1) - kernel(jnp.zeros(()))) / (num - 1)

    cross = jnp.mean(kernel(_squared_distances(a, all_b)), -1)
    return jnp.mean(others(a, all_a) + others(b, all_b) - 2 * cross)


def _squared_distances(a: Array, b: Array) -> Array:
    square = jnp.sum(jnp.square(a), -1)[:, None] + jnp.sum(jnp.square(b), -1)[None]
    return jnp.maximum(square - 2 * a @ b.T, 0)
