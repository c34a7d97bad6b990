"""The Fréchet distance of infinitely many samples (Chong & Forsyth, 2020)."""

from pmjax.evals.base import Metric, Table, option
from pmjax.evals.context import Context
from pmjax.evals.feature_sets import feature_sets, few_images, floor_of, with_spreads
from pmjax.evals.features.base import Features
from pmjax.evals.frechet import Sample, frechet_infinity

METRIC = Metric(
    Table(
        "fd_infinity",
        "Fréchet distance of infinitely many samples ({})",
        "The line through the distances of 1/N images, extrapolated to 0: without the bias of the "
        "number of samples. The bias of the finite test set remains, and the floor shows it.",
        better="lower",
        bars=True,
    ),
    Table(
        "fid_infinity",
        "FID of infinitely many samples ({})",
        "The line through the FIDs of 1/N images, extrapolated to 0: without the bias of the "
        "number of samples.",
        better="lower",
        bars=True,
    ),
    extractor="efficientnet_lite0",
    on_features=True,
    least=lambda points: {"test": 2} | dict.fromkeys(("train", "samples"), max(20, 2 * points)),
    limits={"points": 3},
)


def evaluate(ctx: Context, features: Features, *, points: int = 15) -> dict[str, float]:
    """Returns Fréchet distances to the test set without the bias of the number of samples.

    '<metric>/<prior>' and '<metric>/floor', from `points` sizes of subset; see `frechet_infinity`,
    and `feature_sets` for the keys. Subsets begin at a tenth of the samples:
    'flag/fewer_images_than_features' is the number of images of the smallest one if it is at most
    that of features.
    """
    reference, sets = feature_sets(ctx, features)
    test, seed = Sample(reference), ctx.derived_seed("frechet_infinity")
    where = option(features.metric)
    estimates = {
        what: frechet_infinity(x, test, points=points, seed=seed, where=where)
        for what, x in sets.items()
    }
    counts = [len(reference), *(len(x) // 10 for x in sets.values())]  # of the smallest subsets
    flags = few_images(features, counts, reference.shape[1]) | floor_of(features, sets)
    return with_spreads(features.metric, estimates) | flags
