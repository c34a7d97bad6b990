"""Which examples make up the batch of a step, and how they reach the network."""

import functools
from collections.abc import Iterator

import numpy as np


def to_float(x):
    """Scales uint8 to float32 in [-1, 1], x / 127.5 - 1; float arrays pass unchanged.

    Works on NumPy arrays and on JAX arrays, traced or not.
    """
    if x.dtype.kind in "iub" and x.dtype != np.uint8:
        raise TypeError(f"Data are uint8 or float, not {x.dtype}.")
    if x.dtype != np.uint8:
        return x
    x = x.astype(np.float32)
    x -= 127.5  # first, as this is exact: the ends are then -1 and 1, compiled or not
    x *= 1 / 127.5
    return x


def to_uint8(x):
    """Scales floats in [-1, 1] to uint8, rounded and clipped; uint8 passes unchanged."""
    if x.dtype == np.uint8:
        return x
    x = x.astype(np.float32, copy=False) * 127.5
    x += 128.0  # half a step up, as the cast below cuts off
    return x.clip(0.0, 255.0).astype(np.uint8)


def batch_indices(num_examples: int, batch_size: int, step: int, *, seed: int) -> np.ndarray:
    """Returns the examples of a step, int32 [batch_size].

    Position p = step * batch_size + i lies in epoch p // num_examples, and is there the entry
    p % num_examples of the permutation that (seed, epoch) gives: a batch may straddle epochs, and
    nothing is dropped.
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
    """Returns the read-only permutation int32 [num_examples] of a key of one or two integers.

    It sorts the raw Philox stream, which NumPy keeps the same for ever, unlike `permutation`.
    """
    key = np.array([k % 2**64 for k in (*key, 0)[:2]], np.uint64)
    order = np.argsort(np.random.Philox(key=key).random_raw(num_examples), kind="stable")
    order = order.astype(np.int32)
    order.flags.writeable = False
    return order


def fits(data: np.ndarray, budget_bytes: float) -> bool:
    """Tells whether the whole data set may be kept on the device."""
    return data.nbytes <= budget_bytes


def stream(
    data: np.ndarray,
    *,
    batch_size: int,
    seed: int,
    start: int,
    stop: int,
    rows: slice = slice(None),
    prefetch: int = 8,
    threads: int = 2,
) -> Iterator[np.ndarray]:
    """Yields data[batch_indices(step)[rows]] for step in range(start, stop), read ahead by threads.

    Args:
        data: [N, ...], usually memory-mapped.
        batch_size: examples in a batch.
        seed: of the order, as for `batch_indices`.
        start: the first step: any step, without replaying those before it.
        stop: the step after the last.
        rows: those of each batch that are read, where several hosts share it.
        prefetch: batches that are kept ready.
        threads: how many read.
    """
    import grain  # a second of import that data on the device do without

    array = np.asarray(data)  # np.take gives plain arrays then, and lets other threads run

    def batch(step: int) -> np.ndarray:
        indices = batch_indices(len(array), batch_size, step, seed=seed)
        return np.take(array, indices[rows], axis=0)

    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.range(start, stop).map(batch).to_iter_dataset(options))
