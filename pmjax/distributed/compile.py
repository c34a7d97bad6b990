"""Compiles a training step for the devices of a mesh, by `jit` or by `pmap`."""

import functools
from collections.abc import Callable
from functools import partial

import jax
from jax import lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.distributed import host_memory, sharded_gather
from pmjax.distributed.mesh import BATCH, on_cpu, put_global, spans_processes

Array = jax.Array
MODES = ("jit", "pmap")


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
      divided: an example's shape, if `place_dataset` has divided that table over them.

    Returns:
      A function (state, table, xs) -> (state, metrics). `xs` holds K batches for K steps: with
      `gather`, [K, B] row numbers of the global batches; without, [K, B / processes, …] examples,
      the rows `local_rows` of each. Metrics have a leading axis of K. The state is donated.
      Its attribute `lower` gives the lowered program for the same arguments.
    """

    def fetch(table, rows, capacity):
        if divided is None:
            return table[rows] if gather else rows
        part = partial(sharded_gather.gather, capacity=capacity, axis=BATCH)
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

    if on_cpu(mesh):
        host_memory.keep_freed_memory()
    compile_in = _compile_pmap if mode == "pmap" else _compile_jit

    @functools.cache
    def program(capacity):
        chosen = partial(steps, capacity=capacity)
        return compile_in(chosen, mesh, whole=gather, divided=divided is not None)

    def run(state, table, xs):
        capacity = None
        if divided is not None:
            capacity = sharded_gather.capacity_for(xs, mesh.size, table.shape[1])
        return program(capacity)(state, table, xs)

    def lower(state, table, xs):
        capacity = None
        if divided is not None:
            capacity = sharded_gather.usual_capacity(xs.shape[1], mesh.size)
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
            return compiled[len(xs) > 1](state, table, put_global(xs, batches, whole=whole))

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
        xs = put_global(xs, batches, whole=whole)
        if not spans_processes(mesh):
            return compiled(state, table, xs)
        with jax.transfer_guard("allow"):  # pmap takes the state's key through the host
            return compiled(state, table, xs)

    def lower(state, table, xs):
        if not divided:
            xs = xs.reshape(xs.shape[0], mesh.local_mesh.size, -1, *xs.shape[2:])
        return compiled.lower(state, table, jax.ShapeDtypeStruct(xs.shape, xs.dtype))

    run.lower = lower
    return run


def compiler_options(mesh: Mesh, *, loop: bool = False) -> dict[str, bool | str]:
    """Returns options of XLA for CPUs and for TPUs of the kind v5e; others get none.

    On CPUs, several devices leave each other their cores. What is independent XLA starts side by
    side; in a loop, where steps are small, that costs more than it gains. On v5e, an operation may
    use twice the usual part of a core's own memory, and so moves larger pieces at a time: that is
    the compiler's estimate, no TPU has run it.
    """
    if mesh.devices.flat[0].device_kind == "TPU v5 lite":
        return {"xla_tpu_scoped_vmem_limit_kib": "32768"}
    if not on_cpu(mesh):
        return {}
    options = {"xla_cpu_multi_thread_eigen": False} if jax.local_device_count() > 1 else {}
    if loop:
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        options["xla_cpu_copy_insertion_use_region_analysis"] = True  # copies less of the state
    return options
