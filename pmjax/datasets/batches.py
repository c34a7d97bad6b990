"""Selects the examples of each batch, and scales them between uint8 and [-1, 1]."""

import functools
from collections.abc import Iterator
from typing import Any

import numpy as np


def to_float(x: Any) -> Any:
    """Scales uint8 to float32 in [-1, 1], x / 127.5 - 1; returns float arrays unchanged.

    Works on NumPy arrays and on JAX arrays, traced or not.
    """
    if x.dtype.kind in "iub" and x.dtype != np.uint8:
        raise TypeError(f"Data must be uint8 or float, not {x.dtype}.")
    if x.dtype != np.uint8:
        return x
    x = x.astype(np.float32)
    x -= 127.5  # first, because it is exact: the ends are then -1 and 1, compiled or not
    x *= 1 / 127.5
    return x


def to_uint8(x: Any) -> Any:
    """Scales floats in [-1, 1] to uint8, rounded and clipped; returns uint8 unchanged."""
    if x.dtype == np.uint8:
        return x
    x = x.astype(np.float32, copy=False) * 127.5
    x += 128.0  # half a level more, because the cast below truncates
    return x.clip(0.0, 255.0).astype(np.uint8)


def batch_indices(num_examples: int, batch_size: int, step: int, *, seed: int) -> np.ndarray:
    """Returns the examples of a step, int32 [batch_size].

    Position p = step * batch_size + i is entry p % num_examples of the permutation for
    (seed, epoch) with epoch p // num_examples. A batch may straddle epochs; no example is dropped.
    """
    position = step * batch_size + np.arange(batch_size, dtype=np.int64)
    epoch, place = np.divmod(position, num_examples)
    indices = np.empty(batch_size, np.int32)
    for e in range(int(epoch[0]), int(epoch[-1]) + 1):
        here = epoch == e
        indices[here] = permutation(num_examples, seed, e)[place[here]]
    return indices


@functools.lru_cache(maxsize=4)
def permutation(num_examples: int, *key: int) -> np.ndarray:
    """Returns the read-only permutation int32 [num_examples] for a key of one or two integers.

    It sorts the raw Philox stream: NumPy guarantees that stream, but not `Generator.permutation`.
    """
    words = np.array([k % 2**64 for k in (*key, 0)[:2]], np.uint64)
    order = np.argsort(np.random.Philox(key=words).random_raw(num_examples), kind="stable")
    order = order.astype(np.int32)
    order.flags.writeable = False
    return order


def stream(
    data: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rows: slice = slice(None),
) -> Iterator[np.ndarray]:
    """Yields data[batch_indices(step)[rows]] for step in range(start, stop), prefetched by threads.

    Args:
        data: [N, ...], usually memory-mapped.
        batch_size: examples per batch.
        seed: of the order, as for `batch_indices`.
        start: the first step; earlier steps are not replayed.
        stop: one past the last step.
        rows: the rows of each batch to read, where several hosts share it.
    """
    import grain  # not at the top: takes a second, and data on the device do not need it

    array = np.asarray(data)  # np.take then returns plain arrays and releases the GIL

    def batch(step: int) -> np.ndarray:
        indices = batch_indices(len(array), batch_size, step, seed=seed)
        return np.take(array, indices[rows], axis=0)

    options = grain.ReadOptions(num_threads=2, prefetch_buffer_size=8)  # batches
    return iter(grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(options))
