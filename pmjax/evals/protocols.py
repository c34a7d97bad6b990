"""Fréchet distances by protocol, whichever extractor the features come from."""

import re
from collections.abc import Iterator, Sequence
from types import ModuleType

import numpy as np

from pmjax.datasets.batches import to_uint8
from pmjax.errors import UserError
from pmjax.evals.context import CHUNK, Context
from pmjax.evals.features import statistics
from pmjax.evals.features.base import arguments, features_of, moments, use
from pmjax.evals.frechet import ENOUGH, Sample, frechet_estimate
from pmjax.evals.relatives import OF_DECODER, few_images, small_floor

OTHER = {"train": "test", "test": "train"}


def frechet(
    ctx: Context,
    metric: str,
    extractor: str,
    *,
    protocols: Sequence[str] | None,
    setting: str = "",
    **args,
) -> dict[str, float]:
    """Returns squared Fréchet distances and their standard errors, '…/spread'.

    Without protocols they are '<metric>/<what>', of `num_samples` images from the whole test set,
    and the errors over draws of both. A protocol is a number of samples and what they are compared
    with: '50k_train' (50000 samples against all training data), '10k_test' (10000 against the test
    set), or any other number; of two given sets it is '<N>_samples'. Distances are then
    '<metric>/<protocol>/<what>'; the reference is part of the protocol, and so fixed for the
    errors, and its statistics are kept by its content. So it is where statistics are given.

    <what> is each prior; 'floor', as many real images of the other split; 'recon', reconstructions
    of the reference's images (of the test set all); 'recon_<other split>', reconstructions of the
    floor's, which a perfect prior would reach through this decoder; and 'midpoints', as many,
    decoded half-way between the embeddings of random pairs of test images. Distances of different
    numbers do not compare. 'flag/fewer_images_than_features' is the number of images where it is
    no more than that of features, 'flag/floor_images' that of the floor where the other split has
    too few.

    Args:
        ctx: what to evaluate.
        metric: its name, as in keys and messages.
        extractor: a file of `_features`.
        protocols: by name, or None.
        setting: a part of the extractor's identity that keys name after the protocol.
        **args: of the extractor, instead of the context's.
    """
    ctx.require_images(metric)
    args = arguments(ctx, extractor, args)
    module = use(ctx, extractor, args)
    about = {"extractor": extractor, **ctx.used[extractor]}
    values = {}
    for protocol, (num, split) in _chosen(ctx, protocols).items():
        prefix = "/".join(filter(None, (metric, protocol, about.get(setting))))
        if ctx.statistics:
            reference = Sample.of_moments(
                *statistics.read(ctx.statistics, dim=module.DIM, about=about)
            )
        elif not protocol:
            reference = Sample(features_of(ctx, extractor, split, **args))
        else:
            reference = Sample.of_moments(*_moments(ctx, module, split, about, args))
        counts = [reference.num] if reference.num else []
        _require_finite(metric, f"'{split}'" if ctx.has("model") else "the reference", reference)
        # Sets of this size are those of other metrics, too, which have their features.
        shared = not protocol or (split == "test" and num == ctx.num_samples <= ENOUGH)
        sets = _shared(ctx, extractor, args) if shared else _streamed(ctx, module, args, num, split)
        for what, sample in sets:
            _require_finite(metric, f"'{what}'", sample)
            value, spread = frechet_estimate(sample, reference)
            values |= {f"{prefix}/{what}": value, f"{prefix}/{what}/spread": spread}
            counts.append(sample.num)
            if what == "floor":
                values |= small_floor(ctx, prefix, sample.num, num)
        values |= few_images(ctx, prefix, counts, len(reference.mean))
    return values


def parse(protocol: str) -> tuple[int, str]:
    """Returns the number of samples and the split of the reference; `UserError` for no protocol."""
    match = re.fullmatch(r"([1-9][0-9]*)(k?)_(train|test)", protocol)
    if not match:
        raise UserError(
            f"'{protocol}' is no protocol of FID: give a number of samples and what they are "
            "compared with, such as 50k_train, 10k_test or 2500_test."
        )
    return int(match[1]) * (1000 if match[2] else 1), match[3]


def _chosen(ctx: Context, protocols: Sequence[str] | None) -> dict[str, tuple[int, str]]:
    if protocols is None:
        return {"": (ctx.num_samples, "test")}
    if not ctx.has("model"):
        return {f"{ctx.num_samples}_samples": (ctx.num_samples, "test")}
    return {name: parse(name) for name in protocols or ("",)}


def _moments(ctx, module, split, about, args) -> statistics.Moments:
    """Returns the statistics of a whole split, from this context or the files that are kept."""
    data = getattr(ctx, split)

    def make():
        return moments(module.stream(data.data, **args))

    return ctx.cached(
        ("reference", about["extractor"], split, *sorted(args.items())),
        lambda: statistics.cached(about, data.fingerprint, make, module.DIM),
        of="data",
    )


def _shared(ctx, extractor, args) -> Iterator[tuple[str, Sample]]:
    """Yields what is compared with the test set, and all of its features."""
    for what, source in ctx.compared(OF_DECODER).items():
        yield what, Sample(features_of(ctx, extractor, source, **args))


def _streamed(
    ctx: Context, module: ModuleType, args: dict, num: int, split: str
) -> Iterator[tuple[str, Sample]]:
    """Yields what is compared, and the moments of its features with some of them."""
    other = OTHER[split]
    sets = {
        prior: (ctx.sets[prior] if prior in ctx.sets else ctx.iter_samples(prior, num), num)
        for prior in ctx.priors
    }
    if ctx.has("train"):
        floor = ctx.subset(other, num)
        sets["floor"] = _rows(getattr(ctx, other).data, floor), len(floor)
    if ctx.has("model"):
        recon = len(ctx.test.data) if split == "test" else min(num, len(ctx.train.data))
        sets["recon"] = map(to_uint8, ctx.reconstructed(split, recon)), recon
        sets[f"recon_{other}"] = map(to_uint8, ctx.reconstructed(other, num)), len(floor)
        sets["midpoints"] = ctx.midpoints(num), num
    for what, (parts, count) in sets.items():
        yield what, Sample.of_parts(module.stream(parts, **args), count)


def _rows(data: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), CHUNK):
        yield data[chosen[start : start + CHUNK]]


def _require_finite(metric: str, what: str, sample: Sample) -> None:
    if not np.isfinite(sample.mean).all():
        raise UserError(
            f"Metric '{metric}': features of {what} hold NaN or infinite values. Check the weights "
            "of the extractor, and that the images are what they should be."
        )
