"""Gathers batches from a data set that is divided over the devices."""

import math

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


def gather(table: Array, rows: Array, *, capacity: int, axis: str) -> Array:
    """Returns this device's part of a batch, by an all-to-all exchange of rows.

    Args:
      table: [N / devices, values], this device's part of the data set.
      rows: [B] row numbers of the global batch.
      capacity: rows that each device sends to every other one, needed or not: `capacity_for`.
      axis: name of the devices' axis.
    """
    here, devices = lax.axis_index(axis), lax.axis_size(axis)
    owner, place = jnp.divmod(rows.reshape(devices, -1), len(table))
    mine = owner == here
    slot = jnp.cumsum(mine, 1) - 1
    # A sum over one-hot products instead of a scatter, which is slow on TPUs.
    chosen = mine[..., None] & (slot[..., None] == jnp.arange(capacity))
    sent = table[jnp.sum(place[..., None] * chosen, 1)]
    received = lax.all_to_all(sent, axis, 0, 0)
    source = owner[here]
    earlier = jnp.tril(source[:, None] == source, -1).sum(1)
    return received.reshape(-1, table.shape[1])[source * capacity + earlier]


def capacity_for(xs: np.ndarray, devices: int, each: int) -> int:
    """Returns an upper bound on the rows that a device needs from another in one step.

    The bound is the same for almost all random batches, so that one compiled program serves them.
    For other batches it is a power of two. `xs` are the row numbers [K, B] of K global batches, and
    `each` the table's rows on each device.
    """
    mine = xs.shape[1] // devices
    owner = xs.reshape(-1, mine) // each
    pairs = np.arange(len(owner))[:, None] * devices + owner
    needed = int(np.bincount(pairs.ravel()).max())
    usual = usual_capacity(xs.shape[1], devices)
    return usual if needed <= usual else min(mine, 1 << (needed - 1).bit_length())


def usual_capacity(batch_size: int, devices: int) -> int:
    """Returns a bound, six standard deviations up, that random batches almost never exceed."""
    mine = batch_size // devices
    mean = mine / devices
    return min(mine, math.ceil(mean + 6 * math.sqrt(mean)) + 4)
