"""The swiss roll of scikit-learn: a sheet rolled up in three dimensions, with a little noise."""

import functools
from collections.abc import Iterator

import numpy as np

from pmjax.datasets import Source

NUM_POINTS = 5000
NOISE = 0.05  # standard deviation before scaling
CENTRE, SCALE = (0.0, 10.5, 0.0), 14.2  # takes the roll to about [-1, 1], the same on all axes
FRESH, TRAIN, TEST = range(3)  # streams of random numbers that never meet


def source(*, seed: int) -> Source:
    """Points in 3-D, labelled with the coordinate along the roll; both splits newly drawn."""
    return Source(
        version="1.0.0", points=True, records=functools.partial(_records, seed), identity=(seed,)
    )


def points(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws points that are in no split.

    Returns:
        The points float32 [num, 3], and their coordinates t float32 [num] along the roll.
    """
    return _draw(num, seed, FRESH)


def _draw(num: int, seed: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_swiss_roll

    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, stream])))
    x, t = make_swiss_roll(num, noise=NOISE, random_state=random)
    return ((x - CENTRE) / SCALE).astype(np.float32), t.astype(np.float32)


def _records(seed: int) -> dict[str, Iterator[dict]]:
    return {
        split: ({"point": x, "label": float(t)} for x, t in zip(*drawn, strict=True))
        for split, drawn in {
            "train": _draw(NUM_POINTS, seed, TRAIN),
            "test": _draw(NUM_POINTS, seed, TEST),
        }.items()
    }
