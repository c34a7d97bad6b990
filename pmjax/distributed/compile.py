"""Compiles training steps for the devices of a mesh, with `jit` or `pmap`."""

import dataclasses
import functools
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
from jax import Array, lax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.distributed import host_memory, sharded_gather
from pmjax.distributed.mesh import BATCH, on_cpu, put_global, spans_processes

MODES = ("jit", "pmap")


@dataclasses.dataclass(frozen=True)
class CompiledStep:
    """A function (state, table, xs) -> (state, metrics), and one that returns its program."""

    run: Callable[[Any, Any, Any], tuple[Any, Any]]
    lower: Callable[[Any, Any, Any], Any]

    def __call__(self, state: Any, table: Any, xs: Any) -> tuple[Any, Any]:
        """Makes the steps of one dispatch; the state is donated."""
        return self.run(state, table, xs)


def compile_step(
    step: Callable,
    *,
    mode: str,
    mesh: Mesh,
    gather: bool,
    divided: tuple[int, ...] | None = None,
) -> CompiledStep:
    """Compiles several steps into one dispatch.

    Args:
      step: pure function (state, batch) -> (state, metrics).
      mode: 'jit' (sharded over the mesh) or 'pmap'.
      mesh: the devices.
      gather: whether the examples are in a table on the devices, from which batches are gathered.
      divided: an example's shape, if `place_dataset` divided that table over the devices.

    Returns:
      A function (state, table, xs) -> (state, metrics). `xs` holds K batches for K steps: with
      `gather`, [K, B] row numbers of the global batches; without, [K, B / processes, …] examples,
      the rows `local_rows` of each batch. Metrics have a leading axis of K. The state is donated.
    """

    def fetch(table: Any, rows: Array, capacity: int) -> Array:
        if divided is None:
            return table[rows] if gather else rows
        part = partial(sharded_gather.gather, capacity=capacity, axis=BATCH)
        if mode == "pmap":
            return part(table, rows).reshape(-1, *divided)
        sharded = jax.shard_map(
            lambda table, rows: part(table[0], rows),
            mesh=mesh,
            in_specs=(P(BATCH), P()),
            out_specs=P(BATCH),
        )
        return sharded(table, rows).reshape(-1, *divided)

    def steps(state: Any, table: Any, xs: Array, *, capacity: int) -> tuple[Any, Any]:
        def one(state: Any, x: Array) -> tuple[Any, Any]:
            return step(state, fetch(table, x, capacity))

        if xs.shape[0] > 1:
            return lax.scan(one, state, xs)
        # No loop for a single step: XLA:CPU runs convolutions in loops fifty times slower.
        state, metrics = one(state, xs[0])
        return state, jax.tree.map(lambda value: value[None], metrics)

    if on_cpu(mesh):
        host_memory.keep_freed_memory()
    compile_in = _compile_pmap if mode == "pmap" else _compile_jit

    @functools.cache
    def program(capacity: int) -> CompiledStep:
        chosen = partial(steps, capacity=capacity)
        return compile_in(chosen, mesh, whole=gather, divided=divided is not None)

    def run(state: Any, table: Any, xs: Any) -> tuple[Any, Any]:
        capacity = 0  # not used
        if divided is not None:
            capacity = sharded_gather.capacity_for(xs, mesh.size, table.shape[1])
        return program(capacity)(state, table, xs)

    def lower(state: Any, table: Any, xs: Any) -> Any:
        capacity = 0 if divided is None else sharded_gather.usual_capacity(xs.shape[1], mesh.size)
        return program(capacity).lower(state, table, xs)

    return CompiledStep(run, lower)


def _compile_jit(steps: Callable, mesh: Mesh, *, whole: bool, divided: bool) -> CompiledStep:
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

    def run(state: Any, table: Any, xs: Any) -> tuple[Any, Any]:
        with jax.sharding.set_mesh(mesh):
            return compiled[len(xs) > 1](state, table, put_global(xs, batches, whole=whole))

    def lower(state: Any, table: Any, xs: Any) -> Any:
        shape = jax.ShapeDtypeStruct(xs.shape, xs.dtype)
        with jax.sharding.set_mesh(mesh):
            return compiled[len(xs) > 1].lower(state, table, shape)

    return CompiledStep(run, lower)


def _compile_pmap(steps: Callable, mesh: Mesh, *, whole: bool, divided: bool) -> CompiledStep:
    compiled = jax.pmap(
        steps,
        axis_name=BATCH,
        in_axes=(None, 0 if divided else None, None if divided else 1),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )
    batches = NamedSharding(mesh, P() if divided else P(None, BATCH))

    def run(state: Any, table: Any, xs: Any) -> tuple[Any, Any]:
        if not divided:
            devices = mesh.size if whole else mesh.local_mesh.size
            xs = xs.reshape(xs.shape[0], devices, -1, *xs.shape[2:])
        xs = put_global(xs, batches, whole=whole)
        if not spans_processes(mesh):
            return compiled(state, table, xs)
        with jax.transfer_guard("allow"):  # pmap moves the state's key through the host
            return compiled(state, table, xs)

    def lower(state: Any, table: Any, xs: Any) -> Any:
        if not divided:
            xs = xs.reshape(xs.shape[0], mesh.local_mesh.size, -1, *xs.shape[2:])
        return compiled.lower(state, table, jax.ShapeDtypeStruct(xs.shape, xs.dtype))

    return CompiledStep(run, lower)


def compiler_options(mesh: Mesh, *, loop: bool = False) -> dict[str, bool | str]:
    """Returns XLA's options for CPUs and for TPUs v5e; others have none.

    Several CPU devices do not use several threads each. In a loop, whose steps are small, XLA:CPU
    does not run independent operations concurrently, because that costs more than it gains. On
    v5e, an operation may use twice the default share of the core's own memory, and moves larger
    blocks at a time: faster by the compiler's estimate, not measured on a TPU.
    """
    if mesh.devices.flat[0].device_kind == "TPU v5 lite":
        return {"xla_tpu_scoped_vmem_limit_kib": "32768"}
    if not on_cpu(mesh):
        return {}
    options: dict[str, bool | str] = {}
    if jax.local_device_count() > 1:
        options["xla_cpu_multi_thread_eigen"] = False
    if loop:
        options["xla_cpu_scheduler_type"] = "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
        options["xla_cpu_copy_insertion_use_region_analysis"] = True  # copies less of the state
    return options
