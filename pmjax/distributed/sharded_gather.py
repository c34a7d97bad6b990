"""Batches from a table of examples that is divided over the devices: each takes its rows of all."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

Array = jax.Array


def gather(table: Array, rows: Array, *, capacity: int, axis: str) -> Array:
    """Returns this device's part of the batch `rows` of a table of which it holds a part.

    An all-to-all: each device sends each other one `capacity` rows, also where fewer were asked.

    Args:
      table: [N / devices, values], this device's part.
      rows: [B] numbers of examples, the global batch.
      capacity: at least as many as any device takes of any other, as `capacity_for` finds.
      axis: name of the devices' axis.
    """
    here, devices = lax.axis_index(axis), lax.axis_size(axis)
    owner, place = jnp.divmod(rows.reshape(devices, -1), len(table))
    asked = owner == here
    turn = jnp.cumsum(asked, 1) - 1
    # A sum over products, as TPUs are slow at scattering: of each place's terms one is not zero.
    chosen = asked[..., None] & (turn[..., None] == jnp.arange(capacity))
    sent = table[jnp.sum(place[..., None] * chosen, 1)]
    received = lax.all_to_all(sent, axis, 0, 0)
    source = owner[here]
    earlier = jnp.tril(source[:, None] == source, -1).sum(1)
    return received.reshape(-1, table.shape[1])[source * capacity + earlier]


def capacity_for(xs: np.ndarray, devices: int, each: int) -> int:
    """Returns how many rows any device may take of any other in one step, so that all fit.

    One number, and so one program, serves random batches. Others get a power of two.

    Args:
      xs: [K, B] numbers of examples in K global batches.
      devices: how many divide the batches and the table.
      each: rows of the table that each device holds.
    """
    mine = xs.shape[1] // devices
    owner = xs.reshape(-1, mine) // each
    pairs = np.arange(len(owner))[:, None] * devices + owner
    needed = int(np.bincount(pairs.ravel()).max())
    usual = usual_capacity(xs.shape[1], devices)
    return usual if needed <= usual else min(mine, 1 << (needed - 1).bit_length())


def usual_capacity(batch_size: int, devices: int) -> int:
    """Returns how many rows a device takes of any other at most, but once in many runs."""
    mine = batch_size // devices
    mean = mine / devices
    return min(mine, math.ceil(mean + 6 * math.sqrt(mean)) + 4)
