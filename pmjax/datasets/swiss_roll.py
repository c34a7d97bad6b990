"""The swiss roll of scikit-learn: a sheet rolled up in three dimensions, with a little noise."""

import functools
from collections.abc import Iterator

import numpy as np

from pmjax.datasets.base import Source

NUM_POINTS = 5000
NOISE = 0.05  # standard deviation before scaling
CENTRE, SCALE = (0.0, 10.5, 0.0), 14.2  # takes the roll to about [-1, 1], the same on all axes
T, HEIGHT = (1.5 * np.pi, 4.5 * np.pi), (0.0, 21.0)  # between which both are uniform
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


def unroll(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns where on the sheet without noise points [N, 3] are nearest to it, in float64.

    Returns:
        Coordinates t [N] along the roll; positions [N, 2] on the flat sheet (length of the spiral
        up to t, height) in the units of the points, whose Euclidean distances are the geodesic
        ones; distances [N] of the points from the sheet.
    """
    from scipy.spatial import cKDTree

    x = np.asarray(x, np.float64) * SCALE + CENTRE
    grid = np.linspace(*T, 20_000)  # at most 0.007 apart, before scaling
    spiral = np.stack([grid * np.cos(grid), grid * np.sin(grid)], 1)
    distance, nearest = cKDTree(spiral).query(x[:, [0, 2]])
    t, height = grid[nearest], np.clip(x[:, 1], *HEIGHT)
    length = (t * np.sqrt(1 + t**2) + np.arcsinh(t)) / 2
    sheet = np.stack([length, height], 1) / SCALE
    return t, sheet, np.hypot(distance, x[:, 1] - height) / SCALE


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
