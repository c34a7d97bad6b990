"""The swiss roll of scikit-learn: a rolled-up sheet in three dimensions, with a little noise."""

import functools

import numpy as np

from pmjax.datasets.base import Source

NUM_POINTS = 5000
NOISE = 0.05  # standard deviation before scaling
CENTER, SCALE = (0.0, 10.5, 0.0), 14.2  # maps the roll to about [-1, 1], isotropically
T, HEIGHT = (1.5 * np.pi, 4.5 * np.pi), (0.0, 21.0)  # ranges of the uniform coordinates
FRESH, TRAIN, TEST = range(3)  # independent streams of random numbers


def source(*, seed: int) -> Source:
    """Points in 3-D, labeled with the coordinate along the roll; the splits are independent."""
    return Source(
        version="1.0.0", points=True, records=functools.partial(_records, seed), identity=(seed,)
    )


def points(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws fresh points, which are in no split.

    Returns:
        The points float32 [num, 3], and their coordinates t float32 [num] along the roll.
    """
    return _draw(num, seed, FRESH)


def unroll(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Projects points [N, 3] onto the sheet without noise, in float64.

    Returns:
        Coordinates t [N] along the roll; positions [N, 2] on the flat sheet (arc length of
        the spiral up to t, height) in the units of the points, where Euclidean distances are
        geodesic distances on the roll; distances [N] of the points from the sheet.
    """
    from scipy.spatial import cKDTree  # not at the top: start-up time

    x = np.asarray(x, np.float64) * SCALE + CENTER
    grid = np.linspace(*T, 20_000)  # at most 0.007 apart, before scaling
    spiral = np.stack([grid * np.cos(grid), grid * np.sin(grid)], 1)
    distance, nearest = cKDTree(spiral).query(x[:, [0, 2]])
    t, height = grid[nearest], np.clip(x[:, 1], *HEIGHT)
    length = (t * np.sqrt(1 + t**2) + np.arcsinh(t)) / 2
    sheet = np.stack([length, height], 1) / SCALE
    return t, sheet, np.hypot(distance, x[:, 1] - height) / SCALE


def _draw(num: int, seed: int, stream: int) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import make_swiss_roll  # not at the top: start-up time

    random = np.random.RandomState(np.random.MT19937(np.random.SeedSequence([seed, stream])))
    x, t = make_swiss_roll(num, noise=NOISE, random_state=random)
    return ((x - CENTER) / SCALE).astype(np.float32), t.astype(np.float32)


def _records(seed: int) -> dict[str, list[dict]]:
    return {
        split: [
            {"point": x, "label": float(t)}
            for x, t in zip(*_draw(NUM_POINTS, seed, stream), strict=True)
        ]
        for split, stream in {"train": TRAIN, "test": TEST}.items()
    }
