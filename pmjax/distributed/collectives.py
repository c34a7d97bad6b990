"""Operations on the global batch, with the same result under `jit` and under `pmap`.

Losses and layers are written for the global batch. Under `jit` they see all of it, and XLA divides
the work over the mesh. Under `pmap` each device sees its own rows, and the batch axis has a name.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec as P

from pmjax.distributed.mesh import BATCH

Sampler = Callable[[Array, tuple[int, ...]], Array]


def on_tpus() -> bool:
    """Returns whether the traced function runs on a mesh of TPUs; always False under pmap."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.abstract_device.platform == "tpu"


def batch_axis() -> str | None:
    """Returns the name of the batch axis: `BATCH` while tracing under pmap, else None."""
    try:
        lax.axis_size(BATCH)
    except NameError:
        return None
    return BATCH


def mean(tree: Any) -> Any:
    """Averages over the devices what each has computed from its own rows."""
    axis = batch_axis()
    return tree if axis is None else lax.pmean(tree, axis)


def sample_batch(sampler: Sampler, key: Array, shape: tuple[int, ...]) -> Array:
    """Draws one random row per example; an example's row does not depend on the number of devices.

    `key` is the same on all devices, and `shape` [N, …] that of this device's rows.
    """
    axis = batch_axis()
    if axis is None:
        rows = sampler(key, shape)
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.empty or mesh.size == 1:
            return rows
        # Without the constraint XLA would not divide computations that start from random rows.
        return lax.with_sharding_constraint(rows, P(BATCH))
    num = shape[0]
    all_rows = sampler(key, (num * lax.axis_size(axis), *shape[1:]))
    return lax.dynamic_slice_in_dim(all_rows, lax.axis_index(axis) * num, num)


def roll_batch(x: Array) -> Array:
    """Returns each example's successor in the global batch; the first follows the last."""
    axis = batch_axis()
    if axis is None:
        return jnp.roll(x, -1, axis=0)
    size = lax.axis_size(axis)
    first = lax.ppermute(x[:1], axis, [(i, (i - 1) % size) for i in range(size)])
    return jnp.concatenate([x[1:], first])


def all_gather(x: Array) -> Array:
    """Returns the rows of the global batch, for losses that compare all pairs of examples."""
    axis = batch_axis()
    return x if axis is None else lax.all_gather(x, axis, tiled=True)


def sum_over_shards(fn: Callable, *args: Array) -> Array:
    """Sums `fn` over the devices' parts of the batch.

    `fn` must be a sum over examples, such as a filter's gradient. If `fn` slices a sharded batch,
    XLA moves rows between devices; here each device slices its own part.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.size == 1 or BATCH in mesh.manual_axes:
        return fn(*args)
    shards = jax.shard_map(
        lambda *parts: lax.psum(fn(*parts), BATCH), in_specs=P(BATCH), out_specs=P()
    )
    return shards(*args)
