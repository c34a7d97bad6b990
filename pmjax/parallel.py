"""Devices: the mesh, the two compilations of a step, and what a loss may ask of the whole batch.

Losses and layers are written for the global batch. Under `jit` they see it, and XLA divides the
work over the mesh. Under `pmap` each device sees its own rows and the axis has a name; the
functions below give both the same numbers. No other module knows which of the two it is.
"""

import os
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.errors import UserError

Array = jax.Array
BATCH = "batch"
MODES = ("jit", "pmap")


def use_all_cores(batch_size: int, devices: int = 0) -> None:
    """Gives the CPU backend one device a core; call it before JAX is first used.

    XLA:CPU hardly divides a small convolution over threads, but two devices of one thread each
    take two halves of the batch at full speed.

    Args:
      batch_size: of the global batch; by itself it gets no more devices than divide it, and at
        least 16 examples on each.
      devices: how many to make instead (0: by the cores).
    """
    count = devices
    if not devices:
        count = 2 ** int(np.log2(min(_cores(), max(1, batch_size // 16))))
        while batch_size % count:
            count //= 2
    jax.config.update("jax_num_cpu_devices", count)


def _cores() -> int:
    """Returns how many cores this process may use; in containers fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def make_mesh(devices: int = 0) -> jax.sharding.Mesh:
    """Returns the one-axis mesh over the first `devices` devices (0: all of them)."""
    found = jax.devices()
    if devices > len(found):
        raise UserError(
            f"config.devices={devices}, but JAX sees {len(found)} ({found[0].platform})."
        )
    chosen = found[: devices or len(found)]
    return jax.make_mesh((len(chosen),), (BATCH,), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(size: int, mesh: jax.sharding.Mesh, where: str) -> None:
    """Raises `UserError` unless the devices divide a global batch size."""
    if size % mesh.size:
        lower, upper = size // mesh.size * mesh.size, -(-size // mesh.size) * mesh.size
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"{where}={size} cannot be divided over {mesh.size} devices: take {near}, "
            f"or set config.devices."
        )


def axis_of(mode: str) -> str | None:
    """Returns the name that the batch axis has inside a step compiled with `mode`."""
    return BATCH if mode == "pmap" else None


def mean(tree: Any, axis: str | None) -> Any:
    """Averages over the devices what each computed from its own rows."""
    return tree if axis is None else lax.pmean(tree, axis)


def draw(sampler: Callable, key: Array, shape: tuple[int, ...], axis: str | None) -> Array:
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


def next_example(x: Array, axis: str | None) -> Array:
    """Gives each example its successor in the global batch, the last one the first."""
    if axis is None:
        return jnp.roll(x, -1, axis=0)
    size = lax.axis_size(axis)
    first = lax.ppermute(x[:1], axis, [(i, (i - 1) % size) for i in range(size)])
    return jnp.concatenate([x[1:], first])


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


def compile_step(step: Callable, *, mode: str, mesh: jax.sharding.Mesh, gather: bool) -> Callable:
    """Compiles several steps into one dispatch.

    Args:
      step: pure function (state, batch) -> (state, metrics).
      mode: 'jit' (sharded over the mesh) or 'pmap'.
      mesh: from `make_mesh`.
      gather: whether batches are rows of a table that is kept on the devices.

    Returns:
      A function (state, table, xs) -> (state, metrics). `xs` holds K batches for K steps:
      [K, B, …] examples or, with `gather`, [K, B] row numbers; metrics have a leading axis of K.
      The state is donated.
    """

    def steps(state, table, xs):
        def one(state, x):
            return step(state, table[x] if gather else x)

        if xs.shape[0] > 1:
            return lax.scan(one, state, xs)
        # A loop of one is no loop: XLA:CPU runs convolutions inside loops fifty times slower.
        state, metrics = one(state, xs[0])
        return state, jax.tree.map(lambda value: value[None], metrics)

    if mode == "pmap":
        return _compile_pmap(steps, mesh)
    replicated, batches = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, BATCH))
    compiled = jax.jit(
        steps,
        donate_argnums=0,
        in_shardings=(replicated, replicated, batches),
        out_shardings=(replicated, replicated),
        compiler_options=_compiler_options(mesh),
    )

    def run(state, table, xs):
        with jax.sharding.set_mesh(mesh):
            return compiled(state, table, jax.device_put(xs, batches))

    return run


def _compile_pmap(steps: Callable, mesh: jax.sharding.Mesh) -> Callable:
    compiled = jax.pmap(
        steps,
        axis_name=BATCH,
        in_axes=(None, None, 1),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    divided = NamedSharding(mesh, P(None, BATCH))

    def run(state, table, xs):
        xs = np.asarray(xs).reshape(xs.shape[0], mesh.size, -1, *xs.shape[2:])
        return compiled(state, table, jax.device_put(xs, divided))

    return run


def _compiler_options(mesh: jax.sharding.Mesh) -> dict[str, bool]:
    """Leaves each of several CPU devices its own core."""
    one_thread_each = mesh.size > 1 and mesh.devices.flat[0].platform == "cpu"
    return {"xla_cpu_multi_thread_eigen": False} if one_thread_each else {}


def replicate(tree: Any, mesh: jax.sharding.Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    return jax.device_put(tree, NamedSharding(mesh, P()))
