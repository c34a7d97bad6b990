"""Metrics on features of images, whichever extractor they come from; but see `_protocols` too.

Each compares sets of images with the whole test set and returns '<metric>/<set>', or
'<metric>/<quantity>/<set>', with its spread under the same key + '/spread'. The sets are every
prior by its name (`num_samples` samples) and 'floor' (as many training images: what perfect samples
would reach), where there is a training set; distances, where there is a model, also of 'recon'
(reconstructions of the test set), 'recon_train' (reconstructions of the floor's images: what a
perfect prior would reach through this decoder) and 'midpoints' (`num_samples` decoded midpoints of
embeddings of random pairs of test images).
'<metric>/flag/<what>' appears only where the number of images asked for a caveat, such as
'floor_images', that of a floor that is smaller than the samples.
"""

import sys
from collections.abc import Mapping, Sequence

import numpy as np

from pmjax.errors import UserError
from pmjax.evals.context import Context
from pmjax.evals.features.base import features_of
from pmjax.evals.frechet import Sample, frechet_infinity
from pmjax.evals.kernel import kernel_distances
from pmjax.evals.manifold import Manifold, prdc_estimate
from pmjax.evals.registry import option

OF_DECODER = ("recon", "recon_train", "midpoints")


def frechet_at_infinity(
    ctx: Context, metric: str, extractor: str, *, points: int, **args
) -> dict[str, float]:
    """Returns Fréchet distances of infinitely many samples (see `frechet_infinity`)."""
    reference, sets = feature_sets(ctx, metric, extractor, **args)
    test, seed = Sample(reference), ctx.derived_seed("frechet_infinity")
    estimates = {
        what: frechet_infinity(x, test, points=points, seed=seed, where=option(metric))
        for what, x in sets.items()
    }
    counts = [len(reference), *(len(x) // 10 for x in sets.values())]  # of the smallest subsets
    flags = few_images(ctx, metric, counts, reference.shape[1]) | floor_of(ctx, metric, sets)
    return named(metric, estimates) | flags


def kernel(
    ctx: Context, metric: str, extractor: str, *, subset_size: int, subsets: int, **args
) -> dict[str, float]:
    """Returns kernel distances; their spread is the deviation over subsets, as is usual for KID.

    Subsets hold at most half of the smallest set, so that they differ; 'flag/subset_size' is their
    size where that is less than was asked for.
    """
    reference, sets = feature_sets(ctx, metric, extractor, OF_DECODER, **args)
    size = min(subset_size, *(len(x) // 2 for x in (reference, *sets.values())))
    seed = ctx.derived_seed("kernel")
    estimates = kernel_distances(
        reference, sets, subset_size=size, subsets=subsets, seed=seed, where=option(metric)
    )
    values = named(metric, estimates) | floor_of(ctx, metric, sets)
    if size < subset_size:
        why = (
            f"subsets have {size} images, half of the smallest set, and not {subset_size}: take "
            f"more images (samples: {_more(ctx, metric)}), or set "
            f"{option(metric, 'subset_size')}={size}."
        )
        values |= flag(ctx, metric, "subset_size", size, why)
    return values


def manifold(
    ctx: Context,
    metric: str,
    extractor: str,
    *,
    neighbours: int,
    density_neighbours: int,
    **args,
) -> dict[str, float]:
    """Returns 'precision', 'recall', 'density' and 'coverage', with their standard errors."""
    reference, sets = feature_sets(ctx, metric, extractor, **args)
    ks = {"neighbours": neighbours, "density_neighbours": density_neighbours}
    ks["where"] = option(metric)
    test, seed = Manifold(reference, **ks), ctx.derived_seed("manifold")
    estimates = {
        what: prdc_estimate(test, Manifold(x, **ks), seed=seed) for what, x in sets.items()
    }
    values = {}
    for quantity in ("precision", "recall", "density", "coverage"):
        each = {what: estimate[quantity] for what, estimate in estimates.items()}
        values |= named(f"{metric}/{quantity}", each)
    return values | floor_of(ctx, metric, sets)


def feature_sets(
    ctx: Context, metric: str, extractor: str, also: Sequence[str] = (), **args
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Returns the features float32 [N, D] of the test set, and of the sets beside it by name.

    Args:
        ctx: what to evaluate.
        metric: its name, for messages.
        extractor: a file of `_features`.
        also: what of a decoder to compare beside priors and floor.
        **args: of the extractor.

    Raises:
        UserError: if the data are not images, or features are not finite.
    """
    ctx.require_images(metric)
    sets = {}
    for what, source in {"test": "test", **ctx.compared(also)}.items():
        sets[what] = features_of(ctx, extractor, source, **args)
        if not np.isfinite(sets[what]).all():
            raise UserError(
                f"Metric '{metric}': features of '{what}' hold NaN or infinite values. Check the "
                "weights of the extractor, and that the images are what they should be."
            )
    return sets.pop("test"), sets


def named(metric: str, estimates: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Returns values and spreads under their keys."""
    values = {}
    for what, (value, spread) in estimates.items():
        values |= {f"{metric}/{what}": value, f"{metric}/{what}/spread": spread}
    return values


def few_images(ctx: Context, prefix: str, counts: Sequence[int], dim: int) -> dict[str, float]:
    """Flags sets of fewer images than features: covariances without full rank, a large bias."""
    few = min(counts)
    why = (
        f"{few} images are no more than the {dim} features: the covariance has not full rank, and "
        "the distance a large bias. Compare with the floor only, or take more images (samples: "
        f"{_more(ctx, prefix)})."
    )
    return flag(ctx, prefix, "fewer_images_than_features", few, why) if few <= dim else {}


def small_floor(ctx: Context, prefix: str, count: int, num: int) -> dict[str, float]:
    """Flags a floor of fewer images than there are samples, which it does not compare with."""
    why = (
        f"the floor has {count} images, fewer than the {num} samples: it is not what as many "
        f"perfect samples would reach. Take {count} samples by {_more(ctx, prefix)}."
    )
    return flag(ctx, prefix, "floor_images", count, why) if count < num else {}


def _more(ctx: Context, prefix: str) -> str:
    """Returns the flag that the number of samples of a metric, or its protocol, comes from."""
    if not ctx.has("model"):
        return "--samples"
    return "--protocols" if "/" in prefix else "--config.eval.num_samples"


def floor_of(ctx: Context, prefix: str, sets: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Flags the floor among sets of features, if there is one."""
    return small_floor(ctx, prefix, len(sets["floor"]), ctx.num_samples) if "floor" in sets else {}


def flag(ctx: Context, prefix: str, name: str, value: float, why: str) -> dict[str, float]:
    """Returns '<prefix>/flag/<name>', and says why, once."""

    def say():
        print(f"{prefix}: {why}", file=sys.stderr, flush=True)

    ctx.cached(("flag", prefix, name), say, of="data")
    return {f"{prefix}/flag/{name}": value}
