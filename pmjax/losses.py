"""Losses: arrays in, a scalar out. Norms of examples are means over their values."""

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
