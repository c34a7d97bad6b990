"""Applies a net to images, in batches of one size over the devices of this process."""

from collections.abc import Callable, Iterable, Iterator, Sized
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
    """Yields results float32 [n, D] of a compiled `apply(params, batch)`, in the images' order.

    Args:
        apply: (params, [B, H, W, C]) -> [B, D].
        params: a tree of arrays, which is copied to every device.
        images: of one dtype and size, [N, H, W, 1 or 3], or an iterable of such parts.
        name: of the net, for messages.
        batch_size: over all devices, rounded up to a multiple of their number. The last batch is
            padded, so that all have one compilation.
        dtype: of the images.
    """
    devices = np.asarray(jax.local_devices()[:batch_size])
    mesh = Mesh(devices, ("batch",), axis_types=(AxisType.Auto,))
    batch_size = -(-batch_size // mesh.size) * mesh.size
    params = jax.device_put(params, NamedSharding(mesh, P()))
    rows = NamedSharding(mesh, P("batch"))
    pending = None
    with progress(name, len(images) if isinstance(images, Sized) else None) as bar:
        for batch in _batches(parts_of(images), batch_size, name, dtype):
            padding = [(0, batch_size - len(batch))] + [(0, 0)] * 3
            result = apply(params, jax.device_put(np.pad(batch, padding), rows))
            if pending:  # one batch later, so that the device never waits
                yield _read(*pending)
            pending = (result, len(batch))
            bar.update(len(batch))
        if pending:
            yield _read(*pending)


def parts_of(images: np.ndarray | Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    """Returns the parts of images, which are one if they are an array, or like one: `Folder`."""
    return [images] if hasattr(images, "shape") else images  # type: ignore[list-item]


def cast(params: Any, precision: str) -> Any:
    """Returns parameters of a type, in which the net then computes."""
    if precision not in ("float32", "bfloat16"):
        raise unknown("precision", precision, ("float32", "bfloat16"))
    return jax.tree.map(lambda x: x.astype(precision), params)


def _read(result: jax.Array, count: int) -> np.ndarray:
    return np.asarray(jax.device_get(result)[:count], np.float32)


def _batches(
    parts: Iterable[np.ndarray], size: int, name: str, dtype: type
) -> Iterator[np.ndarray]:
    """Yields parts of any length as pieces of `size`, the last one possibly smaller."""
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
    """Raises `UserError` unless these are images of that type, gray or RGB."""
    shape = tuple(images.shape)
    if images.dtype != dtype or len(shape) != 4 or shape[-1] not in (1, 3):
        alpha = " Flatten the alpha channel first." if len(shape) == 4 and shape[-1] == 4 else ""
        raise UserError(
            f"{name} takes uint8 images [N, H, W, 1 or 3], not {images.dtype} {list(shape)}.{alpha}"
        )
