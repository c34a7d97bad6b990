"""The mesh of devices, and where arrays lie on it.

The mesh may span several processes. Each then holds a part of every batch and of the table of
examples, and all of the state.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.errors import UserError

Array = jax.Array
BATCH = "batch"


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
    if spans_processes(mesh) and len(chosen) < len(found):
        raise UserError(
            f"config.devices={devices} leaves devices of some hosts unused: take 0 for all "
            f"{len(found)}."
        )
    return mesh


def spans_processes(mesh: Mesh) -> bool:
    """Tells whether the mesh has devices of several processes; all of them then take part."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def check_batch(size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` unless the devices divide a global batch size."""
    if size % mesh.size:
        lower, upper = size // mesh.size * mesh.size, -(-size // mesh.size) * mesh.size
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"{where}={size} cannot be divided over {mesh.size} devices: take {near}, "
            f"or set config.devices."
        )


def local_rows(size: int, mesh: Mesh) -> slice:
    """Returns which rows of a global batch this process's devices take."""
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    each = size // mesh.size
    return slice(mine[0] * each, (mine[-1] + 1) * each)


def place_dataset(
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


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    sharding = NamedSharding(mesh, P())

    def put(leaf):
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        return put_global(leaf, sharding, whole=True)

    return jax.tree.map(put, tree) if spans_processes(mesh) else jax.device_put(tree, sharding)


def put_global(x: np.ndarray, sharding: NamedSharding, *, whole: bool) -> Array:
    """Makes a global array, of which each process has given the whole or its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    with jax.transfer_guard("allow"):  # JAX takes these for implicit transfers
        if whole:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
        return jax.make_array_from_process_local_data(sharding, x)


def on_cpu(mesh: Mesh) -> bool:
    return mesh.devices.flat[0].platform == "cpu"
