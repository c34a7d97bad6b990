"""The mesh of devices, and the placement of arrays on it.

The mesh may span several processes. Each process then holds a part of every batch and of the data
set, and the whole state.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.distributed import accelerators
from pmjax.errors import UserError

BATCH = "batch"


def set_up_cpu(devices: int) -> None:
    """Divides the CPU backend into several devices, to test a mesh; call it before JAX is used.

    A single device, the default, is the fastest: XLA uses all cores for it.
    """
    jax.config.update("jax_num_cpu_devices", max(1, devices))
    # The calling thread runs each step, so that all temporaries are in one heap. Otherwise threads
    # alternate, and memory grows by the temporaries of each.
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def make_mesh(devices: int = 0) -> Mesh:
    """Returns the one-axis mesh over the first `devices` devices (0: all of all processes).

    The devices of a process are consecutive, so that its part of a batch is contiguous.

    Raises:
      UserError: if there are fewer devices, or if some devices of several processes are not used.
    """
    accelerators.start()
    found = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
    if devices > len(found):
        raise UserError(
            f"config.devices={devices}, but JAX sees {len(found)} ({found[0].platform})."
        )
    chosen = found[: devices or len(found)]
    mesh = Mesh(np.asarray(chosen), (BATCH,), axis_types=(AxisType.Auto,))
    if spans_processes(mesh) and len(chosen) < len(found):
        raise UserError(
            f"config.devices={devices} leaves devices of some hosts unused. Set it to 0 to use all "
            f"{len(found)}."
        )
    return mesh


def spans_processes(mesh: Mesh) -> bool:
    """Returns whether the mesh has devices of several processes."""
    return len({device.process_index for device in mesh.devices.flat}) > 1


def check_batch(size: int, mesh: Mesh, where: str) -> None:
    """Raises `UserError` if a global batch size is not divisible by the number of devices."""
    if size % mesh.size:
        lower, upper = size // mesh.size * mesh.size, -(-size // mesh.size) * mesh.size
        near = f"{lower} or {upper}" if lower else f"{upper}"
        raise UserError(
            f"{where}={size} is not divisible by {mesh.size} devices. Use {near}, or set "
            f"config.devices."
        )


def local_rows(size: int, mesh: Mesh) -> slice:
    """Returns the rows of a global batch that belong to this process's devices."""
    mine = [i for i, d in enumerate(mesh.devices.flat) if d.process_index == jax.process_index()]
    each = size // mesh.size
    return slice(mine[0] * each, (mine[-1] + 1) * each)


def place_dataset(
    data: np.ndarray, mesh: Mesh, *, budget: float
) -> tuple[Array | None, tuple[int, ...] | None]:
    """Places the examples on the devices, if they fit.

    A data set of at most a tenth of the budget is copied to every device, so that gathering a
    batch needs no communication. A larger one is divided: each process reads and holds only its
    own rows.

    Args:
      data: [N, …], usually memory-mapped.
      mesh: the devices.
      budget: bytes that the data set may occupy on each device.

    Returns:
      The table of examples, and an example's shape if the table is divided (else None). A divided
      table is [devices, N / devices, values], of flat examples, because TPUs gather those. The
      table is None if the examples do not fit; batches are then streamed.
    """
    if data.nbytes <= (budget if mesh.size == 1 else budget / 10):
        return replicate(np.asarray(data), mesh), None
    each = -(-len(data) // mesh.size)
    values = math.prod(data.shape[1:])
    if mesh.size == 1 or each * values * data.itemsize > budget:
        return None, None

    def part(index: Any) -> np.ndarray:
        device = index[0].start or 0
        rows = np.asarray(data[device * each : (device + 1) * each])
        return np.pad(rows.reshape(len(rows), values), ((0, each - len(rows)), (0, 0)))[None]

    sharding = NamedSharding(mesh, P(BATCH))
    table = jax.make_array_from_callback((mesh.size, each, values), sharding, part)
    return table, data.shape[1:]


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device of the mesh."""
    sharding = NamedSharding(mesh, P())

    def put(leaf: Array) -> Array:
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(put(jax.random.key_data(leaf)))
        return put_global(leaf, sharding, whole=True)

    return jax.tree.map(put, tree) if spans_processes(mesh) else jax.device_put(tree, sharding)


def put_global(x: np.ndarray | Array, sharding: NamedSharding, *, whole: bool) -> Array:
    """Makes a global array; each process passes the whole array, or only its own part."""
    if sharding.is_fully_addressable:
        return jax.device_put(x, sharding)
    x = np.asarray(x)
    with jax.transfer_guard("allow"):  # JAX regards these as implicit transfers
        if whole:
            return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])
        return jax.make_array_from_process_local_data(sharding, x)


def on_cpu(mesh: Mesh) -> bool:
    """Returns whether the devices are CPUs."""
    return mesh.devices.flat[0].platform == "cpu"
