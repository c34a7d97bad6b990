"""Images through a net: in batches of one size, over the devices of this process."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.errors import UserError, unknown
from pmjax.reporting.progress import progress


def run(
    apply: Callable[[Any, jax.Array], jax.Array],
    params: Any,
    images: np.ndarray | Iterable[np.ndarray],
    *,
    name: str,
    batch_size: int,
    dtype: type = np.uint8,
) -> Iterator[np.ndarray]:
    """Yields what a compiled `apply(params, batch)` gives for images, in their order.

    Args:
        apply: (params, [B, H, W, C]) -> [B, D].
        params: a tree of arrays, copied to every device.
        images: uint8 [N, H, W, 1 or 3], or an iterable of such parts of one size.
        name: of the net, for messages.
        batch_size: over all devices, rounded up to what they divide.
        dtype: of the images, where they are not uint8.

    Yields:
        float32 [n, D] on the host, n ≤ B: batches are padded, so that one compilation serves all.
    """
    devices = np.asarray(jax.local_devices()[:batch_size])
    mesh = Mesh(devices, ("batch",), axis_types=(AxisType.Auto,))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    params = jax.device_put(params, NamedSharding(mesh, P()))
    rows = NamedSharding(mesh, P("batch"))
    whole = hasattr(images, "shape")
    pending = None
    with progress(name, len(images) if whole else None) as bar:
        for batch in _batches([images] if whole else images, batch_size, name, dtype):
            padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
            result = apply(params, jax.device_put(np.pad(batch, padding), rows))
            if pending:  # read one batch behind, so that the device never waits
                yield _read(*pending)
            pending = (result, len(batch))
            bar.update(len(batch))
        if pending:
            yield _read(*pending)


def cast(params: Any, precision: str) -> Any:
    """Returns parameters of that type, in which the net then computes."""
    if precision not in ("float32", "bfloat16"):
        raise unknown("precision", precision, ("float32", "bfloat16"))
    return jax.tree.map(lambda x: x.astype(precision), params)


def _read(result, count):
    return np.asarray(jax.device_get(result)[:count], np.float32)


def _batches(parts, size, name, dtype):
    """Cuts parts of any length into pieces of `size`, but for the last."""
    rest = None
    for part in parts:
        check(part, name, dtype)
        for start in range(0, len(part), size):
            piece = np.asarray(part[start : start + size])
            rest = piece if rest is None else np.concatenate([rest, piece])
            if len(rest) >= size:
                yield rest[:size]
                rest = rest[size:]
    if rest is not None and len(rest):
        yield rest


def check(images: np.ndarray, name: str, dtype: type = np.uint8) -> None:
    """Raises `UserError` unless these are images of that type, grey or RGB."""
    shape = tuple(images.shape)
    if images.dtype != dtype or len(shape) != 4 or shape[-1] not in (1, 3):
        alpha = " Flatten the alpha channel first." if len(shape) == 4 and shape[-1] == 4 else ""
        raise UserError(
            f"{name} takes uint8 images [N, H, W, 1 or 3], not {images.dtype} {list(shape)}.{alpha}"
        )
