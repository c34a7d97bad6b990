"""Losses: arrays in, a scalar out. Norms of examples are means over their values."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array


def squared_error(a: Array, b: Array | float) -> Array:
    """Returns the mean of (a - b)² over everything."""
    return jnp.mean(jnp.square(a - b))


def absolute_error(a: Array, b: Array | float) -> Array:
    """Returns the mean of |a - b| over everything."""
    return jnp.mean(jnp.abs(a - b))


def hinge_critic(real: Array, fake: Array) -> Array:
    """Returns E[relu(1 - D(real))] + E[relu(1 + D(fake))], equation (12)."""
    return jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))


def hinge_generator(fake: Array) -> Array:
    """Returns E[-D(fake)], equation (13)."""
    return -jnp.mean(fake)


def logistic_critic(real: Array, fake: Array) -> Array:
    """Returns -E[log σ(D(real))] - E[log(1 - σ(D(fake)))] for logits D (Goodfellow et al. 2014)."""
    return jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))


def logistic_generator(fake: Array) -> Array:
    """Returns -E[log σ(D(fake))], which does not saturate."""
    return jnp.mean(jax.nn.softplus(-fake))


# Each is (critic's loss, generator's loss).
ADVERSARIAL = {
    "hinge": (hinge_critic, hinge_generator),
    "logistic": (logistic_critic, logistic_generator),
}


def gaussian_kl(mean: Array, log_variance: Array) -> Array:
    """Returns KL(N(mean, variance) ‖ N(0, I)) in nats, one for each example: [N, d] to [N]."""
    variance = jnp.exp(log_variance)
    return jnp.sum(jnp.square(mean) + variance - 1 - log_variance, axis=-1) / 2


def gradient_penalty(fn: Callable[[Array], Array], x: Array) -> Array:
    """Returns E[‖∇fn(x)‖²], summed over an example's values.

    Args:
      fn: from examples [N, …] to numbers [N], each of its own example only.
      x: where, [N, …].
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


def mmd(
    a: Array,
    b: Array,
    kernel: Callable[[Array], Array],
    everyone: Callable[[Array], Array] = lambda x: x,
) -> Array:
    """Returns the unbiased estimate of the squared maximum mean discrepancy (Gretton et al. 2012).

    Args:
      a: examples [N, d].
      b: examples of the other distribution, as many.
      kernel: from squared distances to similarities.
      everyone: from this device's rows to those of all devices, whose mean is then the estimate.
    """
    everyone_a, everyone_b = everyone(a), everyone(b)
    num = len(everyone_a)

    def others(x, y):  # similarity to all but oneself
        return (jnp.sum(kernel(_squared_distances(x, y)), -1) - kernel(jnp.zeros(()))) / (num - 1)

    cross = jnp.mean(kernel(_squared_distances(a, everyone_b)), -1)
    return jnp.mean(others(a, everyone_a) + others(b, everyone_b) - 2 * cross)


def _squared_distances(a: Array, b: Array) -> Array:
    square = jnp.sum(jnp.square(a), -1)[:, None] + jnp.sum(jnp.square(b), -1)[None]
    return jnp.maximum(square - 2 * a @ b.T, 0)
