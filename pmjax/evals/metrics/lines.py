"""ACAI's 'lines' task: whether interpolated lines are lines, and turn evenly."""

import numpy as np
from sklearn.metrics import pairwise_distances_argmin_min

from pmjax.datasets import lines
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, Value, lower
from pmjax.evals.context import OMIT_HINT, Context, finite

METRIC = Metric(
    Table(
        "lines",
        "Interpolated lines",
        "ACAI's task: interpolations should be lines whose angles change evenly; 0 is perfect.",
        {
            "mean_distance": lower("from each image to the nearest line"),
            "distance_floor": Value("of real lines"),
            "smoothness": lower(
                "largest turn beyond an even one; invalid interpolations count as 0"
            ),
            "smoothness_strict": lower("the same, with invalid interpolations as one jump"),
            "invalid": lower("share of interpolations that end at the angle where they begin"),
        },
    ),
    least={"test": 2},
    limits={"num": 1, "frames": 2},
)
BANK = 10_000  # rendered lines, at equal angles
SAME = 1e-4  # radians: less than two lines of the bank are apart
REAL = 1e-3  # mean cosine distance of test images to the bank, for the data to be lines


def evaluate(ctx: Context, *, num: int = 256, frames: int = 16) -> dict[str, float]:
    """Returns Mean Distance and Smoothness of interpolations between lines of the test set.

    Berthelot et al., 2019: `num` random pairs of test images, each interpolated over `frames`
    images, ends included, by `model.interpolate`. The distance is the smallest cosine distance to
    10,000 rendered lines. With θ the angles of the nearest lines, unwrapped, smoothness is the mean
    over interpolations of max |Δθ| / |θ_end - θ_start| - 1 / (frames - 1). Interpolations with
    θ_end = θ_start have none: they count as 0 in 'lines/smoothness', as in ACAI's code, and as a
    single jump in 'lines/smoothness_strict', which does not reward a collapsed decoder.
    """
    num = min(num, len(ctx.test.data) // 2)
    chosen = np.random.default_rng(ctx.derived_seed("lines")).permutation(len(ctx.test.data))
    a, b = (ctx.test.data[chosen[part * num : (part + 1) * num]] for part in range(2))
    shape = (lines.SIZE, lines.SIZE, 1)
    floor = np.inf
    if a.shape[1:] == shape:
        floor = nearest_lines(to_float(np.concatenate([a, b])))[0].mean()
    if not floor < REAL:
        raise UserError(f"Metric 'lines' needs the data set 'lines' at its own size. {OMIT_HINT}")
    images = finite("interpolations", ctx.model.interpolate(a, b, steps=frames))
    distances, angles = nearest_lines(images.reshape(-1, *shape))
    smoothness = smoothness_of(angles.reshape(num, frames))
    invalid = np.isnan(smoothness)
    return {
        "lines/mean_distance": distances.mean(),
        "lines/distance_floor": floor,
        "lines/smoothness": np.where(invalid, 0, smoothness).mean(),
        "lines/smoothness_strict": np.where(invalid, 1 - 1 / (frames - 1), smoothness).mean(),
        "lines/invalid": invalid.mean(),
    }


def nearest_lines(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the cosine distance [N] to the nearest line of the bank, and its angle in [0, 2π).

    Images are float [N, 32, 32, 1] in [-1, 1]; those of constant 0 have distance 1.
    """
    angles = np.linspace(0, 2 * np.pi, BANK, endpoint=False)
    bank = to_float(lines.render(angles))
    rows = (x.reshape(len(x), -1).astype(np.float64) for x in (images, bank))
    nearest, distances = pairwise_distances_argmin_min(*rows, metric="cosine")
    return distances, angles[nearest]


def smoothness_of(angles: np.ndarray) -> np.ndarray:
    """Returns max |Δθ| / |θ_end - θ_start| - 1 / (F - 1) of angles [N, F], or NaN, as [N]."""
    angles = np.unwrap(angles)
    total = np.abs(angles[:, -1] - angles[:, 0])
    total = np.where(total < SAME, np.nan, total)
    return np.abs(np.diff(angles)).max(1) / total - 1 / (angles.shape[1] - 1)
