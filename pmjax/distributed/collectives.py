"""What a loss or a layer may ask of the whole batch, the same under `jit` and under `pmap`.

Losses and layers are written for the global batch. Under `jit` they see it, and XLA divides the
work over the mesh. Under `pmap` each device sees its own rows and the axis has a name; these
functions give both the same numbers.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P

from pmjax.distributed.mesh import BATCH

Array = jax.Array


def on_tpus() -> bool:
    """Tells whether what is traced is for a mesh of TPUs; under pmap it is not known."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.abstract_device.platform == "tpu"


def batch_axis(mode: str) -> str | None:
    """Returns the name that the batch axis has inside a step compiled with `mode`."""
    return BATCH if mode == "pmap" else None


def mean(tree: Any, axis: str | None) -> Any:
    """Averages over the devices what each computed from its own rows."""
    return tree if axis is None else lax.pmean(tree, axis)


def sample_batch(sampler: Callable, key: Array, shape: tuple[int, ...], axis: str | None) -> Array:
    """Draws random rows for the batch: the same for each example however it is divided.

    Args:
      sampler: such as `jax.random.normal`, called with (key, shape).
      key: one key, the same on all devices.
      shape: of this device's rows; the first size is the rows'.
      axis: name of the batch axis, if it has one.
    """
    if axis is None:
        drawn = sampler(key, shape)
        mesh = jax.sharding.get_abstract_mesh()
        # Nothing else would tell XLA to divide what is computed from draws alone.
        alone = mesh.empty or mesh.size == 1
        return drawn if alone else lax.with_sharding_constraint(drawn, P(BATCH))
    rows = shape[0]
    everything = sampler(key, (rows * lax.axis_size(axis), *shape[1:]))
    return lax.dynamic_slice_in_dim(everything, lax.axis_index(axis) * rows, rows)


def roll_batch(x: Array, axis: str | None) -> Array:
    """Gives each example its successor in the global batch, the last one the first."""
    if axis is None:
        return jnp.roll(x, -1, axis=0)
    size = lax.axis_size(axis)
    first = lax.ppermute(x[:1], axis, [(i, (i - 1) % size) for i in range(size)])
    return jnp.concatenate([x[1:], first])


def all_gather(x: Array, axis: str | None) -> Array:
    """Returns the whole batch's rows, for what compares each example with all others."""
    return x if axis is None else lax.all_gather(x, axis, tiled=True)


def sum_over_shards(fn: Callable, *args: Array) -> Array:
    """Sums `fn` over the parts of the batch that the devices hold.

    `fn` must be a sum over examples, such as a filter's gradient. XLA would move the rows of a
    sharded batch between devices where `fn` cuts it into pieces; here each device cuts its own.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or BATCH in mesh.manual_axes:
        return fn(*args)
    shards = jax.shard_map(
        lambda *parts: lax.psum(fn(*parts), BATCH), in_specs=P(BATCH), out_specs=P()
    )
    return shards(*args)
