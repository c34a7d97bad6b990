"""Devices: the mesh, the two compilations of a step, and what a loss may ask of the whole batch.

Losses and layers are written for the global batch. Under `jit` they see it, and XLA divides the
work over the mesh. Under `pmap` each device sees its own rows and the axis has a name; the
functions below give both the same numbers. No other module knows which of the two it is.

The mesh may span several processes. Each then holds a part of every batch and of the table of
examples, and all of the state.
"""

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax import exchange, heaps
from pmjax.errors import UserError

Array = jax.Array
BATCH = "batch"
MODES = ("jit", "pmap")


def set_up_cpu(devices: int) -> None:
    """Divides the CPU backend into several devices, to try a mesh; call it before JAX is used.

    One, the default, is the fastest: XLA runs its work on all cores.
    """
    jax.config.update("jax_num_cpu_devices", max(1, devices))
    # The calling thread starts each step, so that its temporaries are always in the same heap; else
    # now one thread, now another has them, and memory grows by each one's.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_mesh(devices: int = 0) -> Mesh:
    """Returns the one-axis mesh over the first `devices` devices (0: those of all processes).

    Each process's devices follow one another, so that its part of a batch is one piece.

    Raises:
      UserError: if there are fewer, or if they are some processes' and not the first's alone.
    """
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if devices > len(found):
        raise UserError(
            f"config.devices={devices}, but JAX sees {len(found)} ({found[0].platform})."
        )
    chosen = found[: devices or len(found)]
    mesh = Mesh(np.asarray(chosen), (BATCH,), axis_types=(AxisType.Auto,))
    if spans_hosts(mesh) and len(chosen) < len(found):
        raise UserError(
            f"config.devices={devices} leaves devices of some hosts unused: take 0 for all "
            f"{len(found)}."
        )
    return mesh


def spans_hosts(mesh: Mesh) -> bool:
    """Tells whether the mesh has devices of several processes; all of them then take part."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def on_tpus() -> bool:
    """Tells whether what is traced is for a mesh of TPUs; under pmap it is not known."""
    mesh = jax.sharding.get_abstract_mesh()
    return not mesh.empty and mesh.abstract_device.platform == "tpu"


def check_batch(size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` unless the devices divide a global batch size."""
    if size % mesh.size:
        lower, upper = size // mesh.size * mesh.size, -(-size // mesh.size) * mesh.size
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"{where}={size} cannot be divided over {mesh.size} devices: take {near}, "
            f"or set config.devices."
        )


def my_rows(size: int, mesh: Mesh) -> slice:
    """Returns which rows of a global batch this process's devices take."""
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    each = size // mesh.size
    return slice(mine[0] * each, (mine[-1] + 1) * each)


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


def everyone(x: Array, axis: str | None) -> Array:
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


def keep(
    data: np.ndarray, mesh: Mesh, *, budget: float
) -> tuple[Array | None, tuple[int, ...] | None]:
    """Puts a table of examples on the devices, if it fits.

    A table that takes a tenth of the budget or less is copied to every device: that costs nothing
    worth saving, and batches are gathered without a word between devices. A larger one is divided,
    so that each process reads and holds its own rows only.

    Args:
      data: [N, …], usually memory-mapped.
      mesh: the devices.
      budget: bytes that the table may take on each device.

    Returns:
      The table, None if it does not fit: then batches are streamed. And, if the table is divided,
      an example's shape, else None: the table is then [devices, N / devices, values], with flat
      examples, as TPUs gather them.
    """
    if data.nbytes <= (budget if mesh.size == 1 else budget / 10):
        return replicate(np.asarray(data), mesh), None
    each = -(-len(data) // mesh.size)
    if mesh.size == 1 or each * (data.nbytes // len(data)) > budget:
        return None, None

    values = math.prod(data.shape[1:])

    def part(index: tuple[slice, ...]) -> np.ndarray:
        device = index[0].start or 0
        rows = np.asarray(data[device * each : (device + 1) * each])
        return np.pad(rows.reshape(len(rows), values), ((0, each - len(rows)), (0, 0)))[None]

    sharding = NamedSharding(mesh, P(BATCH))
    table = jax.make_array_from_callback((mesh.size, each, values), sharding, part)
    return table, data.shape[1:]


def compile_step(
    step: Callable,
    *,
    mode: str,
    mesh: Mesh,
    gather: bool,
    divided: tuple[int, ...] | None = None,
) -> Callable:
    """Compiles several steps into one dispatch.

    Args:
      step: pure function (state, batch) -> (state, metrics).
      mode: 'jit' (sharded over the mesh) or 'pmap'.
      mesh: from `make_mesh`.
      gather: whether batches are rows of a table that is kept on the devices.
      divided: an example's shape, if `keep` has divided that table over them.

    Returns:
      A function (state, table, xs) -> (state, metrics). `xs` holds K batches for K steps: with
      `gather`, [K, B] row numbers of the global batches; without, [K, B / processes, …] examples,
      the rows `my_rows` of each. Metrics have a leading axis of K. The state is donated.
      Its attribute `lower` gives the lowered program for the same arguments.
    """

    def fetch(table, rows, capacity):
        if divided is None:
            return table[rows] if gather else rows
        part = partial(exchange.gather, capacity=capacity, axis=BATCH)
        if mode == "jit":
            part = jax.shard_map(
                lambda table, rows, part=part: part(table[0], rows),
                mesh=mesh,
                in_specs=(P(BATCH), P()),
                out_specs=P(BATCH),
            )
        return part(table, rows).reshape(-1, *divided)

    def steps(state, table, xs, *, capacity):
        def one(state, x):
            return step(state, fetch(table, x, capacity))

        if xs.shape[0] > 1:
            return lax.scan(one, state, xs)
        # A loop of one is no loop: XLA:CPU runs convolutions inside loops fifty times slower.
        state, metrics = one(state, xs[0])
        return state, jax.tree.map(lambda value: value[None], metrics)

    if _on_cpu(mesh):
        heaps.keep_freed_memory()
    compile_in = _compile_pmap if mode == "pmap" else _compile_jit

    @functools.cache
    def program(capacity):
        chosen = partial(steps, capacity=capacity)
        return compile_in(chosen, mesh, whole=gather, divided=divided is not None)

    def run(state, table, xs):
        capacity = None
        if divided is not None:
            capacity = exchange.capacity_for(xs, mesh.size, table.shape[1])
        return program(capacity)(state, table, xs)

    def lower(state, table, xs):
        capacity = None
        if divided is not None:
            capacity = exchange.usual_capacity(xs.shape[1], mesh.size)
        return program(capacity).lower(state, table, xs)

    run.lower = lower
    return run


def _compile_jit(steps: Callable, mesh: Mesh, *, whole: bool, divided: bool) -> Callable:
    replicated = NamedSharding(mesh, P())
    table = NamedSharding(mesh, P(BATCH)) if divided else replicated
    batches = replicated if divided else NamedSharding(mesh, P(None, BATCH))
    compiled = {
        loop: jax.jit(
            steps,
            donate_argnums=0,
            in_shardings=(replicated, table, batches),
            out_shardings=(replicated, replicated),
            compiler_options=compiler_options(mesh, loop=loop),
        )
        for loop in (False, True)
    }

    def run(state, table, xs):
        with jax.sharding.set_mesh(mesh):
            return compiled[len(xs) > 1](state, table, _put(xs, batches, whole=whole))

    def lower(state, table, xs):
        shape = jax.ShapeDtypeStruct(xs.shape, xs.dtype)
        with jax.sharding.set_mesh(mesh):
            return compiled[len(xs) > 1].lower(state, table, shape)

    run.lower = lower
    return run


def _compile_pmap(steps: Callable, mesh: Mesh, *, whole: bool, divided: bool) -> Callable:
    compiled = jax.pmap(
        steps,
        axis_name=BATCH,
        in_axes=(None, 0 if divided else None, None if divided else 1),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    batches = NamedSharding(mesh, P() if divided else P(None, BATCH))

    def run(state, table, xs):
        if not divided:
            devices = mesh.size if whole else mesh.local_mesh.size
            xs = xs.reshape(xs.shape[0], devices, -1, *xs.shape[2:])
        xs = _put(xs, batches, whole=whole)
        if not spans_hosts(mesh):
            return compiled(state, table, xs)
        with jax.transfer_guard("allow"):  # pmap takes the state's key through the host
            return compiled(state, table, xs)

    def lower(state, table, xs):
        if not divided:
            xs = xs.reshape(xs.shape[0], mesh.local_mesh.size, -1, *xs.shape[2:])
        return compiled.lower(state, table, jax.ShapeDtypeStruct(xs.shape, xs.dtype))

    run.lower = lower
    return run


def _put(x: np.ndarray, sharding: NamedSharding, *, whole: bool) -> Array:
    """Makes a global array, of which each process has given the whole or its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    with jax.transfer_guard("allow"):  # JAX takes these for implicit transfers
        if whole:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
        return jax.make_array_from_process_local_data(sharding, x)


def compiler_options(mesh: Mesh, *, loop: bool = False) -> dict[str, bool | str]:
    """Returns options of XLA for CPUs and for TPUs of the kind v5e; others get none.

    On CPUs, several devices leave each other their cores. What is independent XLA starts side by
    side; in a loop, where steps are small, that costs more than it gains. On v5e, an operation may
    use twice the usual part of a core's own memory, and so moves larger pieces at a time: that is
    the compiler's estimate, no TPU has run it.
    """
    if mesh.devices.flat[0].device_kind == "TPU v5 lite":
        return {"xla_tpu_scoped_vmem_limit_kib": "32768"}
    if not _on_cpu(mesh):
        return {}
    options = {"xla_cpu_multi_thread_eigen": False} if jax.local_device_count() > 1 else {}
    if loop:
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        options["xla_cpu_copy_insertion_use_region_analysis"] = True  # copies less of the state
    return options


def _on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    sharding = NamedSharding(mesh, P())

    def put(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        return _put(leaf, sharding, whole=True)

    return jax.tree.map(put, tree) if spans_hosts(mesh) else jax.device_put(tree, sharding)
