"""The kernel distance between features of images (Bińkowski et al., 2018); on Inception, KID."""

from collections.abc import Mapping

import numpy as np

from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, option
from pmjax.evals.context import Context
from pmjax.evals.feature_sets import OF_DECODER, feature_sets, flag, floor_of, with_spreads
from pmjax.evals.features.base import Features

METRIC = Metric(
    Table(
        "kd",
        "Kernel distance ({})",
        "Unbiased squared MMD between features with a cubic kernel; lower is better, near 0 for "
        "real images whatever their number. The spread is over subsets. It does not compare with "
        "KID, which is on Inception features.",
        better="lower",
    ),
    Table(
        "kid",
        "Kernel Inception Distance",
        "Unbiased squared MMD between Inception features with a cubic kernel; lower is better, "
        "near 0 for real images. The spread is over subsets.",
        better="lower",
    ),
    extractor="efficientnet_lite0",
    on_features=True,
    least=4,
    limits={"subset_size": 2, "subsets": 1},
)


def evaluate(
    ctx: Context, features: Features, *, subset_size: int = 1000, subsets: int = 100
) -> dict[str, float]:
    """Returns unbiased kernel distances to the test set as '<metric>/<set>', not times 1000.

    The mean over `subsets` random subsets, whose deviation is the spread, as is usual for KID.
    Subsets have at most half of the images of the smallest set, so that they differ;
    'flag/subset_size' is their size if that is less than `subset_size`.
    """
    reference, sets = feature_sets(ctx, features, OF_DECODER)
    size = min(subset_size, *(len(x) // 2 for x in (reference, *sets.values())))
    where, seed = option(features.metric), ctx.derived_seed("kernel")
    estimates = kernel_distances(
        reference, sets, subset_size=size, subsets=subsets, seed=seed, where=where
    )
    values = with_spreads(features.metric, estimates) | floor_of(features, sets)
    if size < subset_size:
        more = "--config.eval.num_samples" if ctx.has("model") else "--samples"
        why = (
            f"subsets have {size} images, half of the smallest set, and not {subset_size}: use "
            f"more images (samples: {more}), or set {where}subset_size={size}."
        )
        values |= flag(features, "subset_size", size, why)
    return values


def kernel_distances(
    reference: np.ndarray,
    sets: Mapping[str, np.ndarray],
    *,
    subset_size: int,
    subsets: int,
    seed: int,
    where: str = "",
) -> dict[str, tuple[float, float]]:
    """Returns the distance of each set [N, D] to the reference: mean and deviation over subsets.

    The unbiased estimate of MMD², over `subsets` pairs of random subsets of `subset_size`
    examples, with the kernel (xᵀy / D + 1)³. It is unbiased: about 0 between sets of one
    distribution, possibly negative, and only its deviation depends on the size of subsets. Every
    set is compared with the same subsets of the reference, which makes their differences more
    precise than the distances. `where` precedes an argument's name in messages.
    """
    smallest = min(map(len, (reference, *sets.values())))
    if not 2 <= subset_size <= smallest or subsets < 1:
        raise UserError(
            f"{subsets} subsets of {subset_size} examples cannot be drawn from {smallest}: set "
            f"{where}subset_size to at least 2 and {where}subsets to at least 1, and give four "
            "examples of each set or more."
        )
    values: dict[str, list[float]] = {what: [] for what in sets}
    for index in range(subsets):
        y = _draw(reference, subset_size, (seed, index, 0))
        within = _mean_of_pairs(y)
        for what, features in sets.items():
            x = _draw(features, subset_size, (seed, index, 1))
            values[what].append(_mean_of_pairs(x) + within - 2 * _kernel(x, y).mean())
    return {what: (float(np.mean(each)), float(np.std(each))) for what, each in values.items()}


def _draw(features: np.ndarray, size: int, seed: tuple[int, ...]) -> np.ndarray:
    chosen = np.random.default_rng(seed).choice(len(features), size, replace=False)
    return features[chosen].astype(np.float64)


def _mean_of_pairs(x: np.ndarray) -> float:
    """Returns the mean of the kernel over pairs of two different examples."""
    kernel = _kernel(x, x)
    return (kernel.sum() - np.trace(kernel)) / (len(x) * (len(x) - 1))


def _kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base
