"""Lines from the center at a random angle, 32 x 32: ACAI's task (Berthelot et al. 2019)."""

import functools

import numpy as np

from pmjax.datasets.base import Source
from pmjax.datasets.records import DecodedImages

NUM_TRAIN, NUM_TEST = 5000, 1000
SIZE, LENGTH, WIDTH = 32, 16, 2  # pixels: the lines end at the border
TRAIN, TEST = range(2)  # independent streams of random numbers


def source(*, seed: int) -> Source:
    """White on black, labeled with the angle; the two splits are independent draws."""
    return Source(
        version="1.0.0", size=SIZE, records=functools.partial(_records, seed), identity=(seed,)
    )


def render(angles: np.ndarray) -> np.ndarray:
    """Draws antialiased lines.

    The value of a pixel is the covered share of a unit square at its center, aligned with the line.

    Args:
        angles: [N] in radians, counterclockwise from the right.

    Returns:
        uint8 [N, 32, 32].
    """
    right = np.arange(SIZE, dtype=np.float32) + 0.5 - SIZE / 2
    up = -right[:, None]
    cos, sin = (f(np.asarray(angles, np.float32))[:, None, None] for f in (np.cos, np.sin))
    along, across = right * cos + up * sin, np.abs(up * cos - right * sin)
    share = np.clip(along + 0.5, 0, 1) * np.clip(LENGTH + 0.5 - along, 0, 1)
    share *= np.clip(WIDTH / 2 + 0.5 - across, 0, 1)
    return np.rint(share * 255).astype(np.uint8)


def _records(seed: int) -> dict[str, DecodedImages]:
    return {"train": _draw(NUM_TRAIN, seed, TRAIN), "test": _draw(NUM_TEST, seed, TEST)}


def _draw(num: int, seed: int, stream: int) -> DecodedImages:
    angles = np.random.default_rng([seed, stream]).uniform(0, 2 * np.pi, num)
    return DecodedImages(render(angles), angles)
