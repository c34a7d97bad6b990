"""The Fréchet distance between features of images; on Inception features, FID.

Heusel et al., arXiv 1706.08500.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from pmjax.datasets.batches import to_uint8
from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table
from pmjax.evals.context import CHUNK, Context
from pmjax.evals.feature_sets import OF_DECODER, few_images, require_finite, small_floor
from pmjax.evals.features import statistics
from pmjax.evals.features.base import Features
from pmjax.evals.frechet import ENOUGH, Sample, frechet_estimate

OTHER = {"train": "test", "test": "train"}


def check(args: Mapping[str, Any]) -> None:
    """Raises `UserError` for protocols that do not exist."""
    for protocol in () if args.get("protocols") is None else args["protocols"] or ("",):
        parse(protocol)


def least(protocols: Sequence[str] | None) -> dict[str, int]:
    """Returns the fewest examples; protocols have their own numbers of samples."""
    return {"test": 2, "train": 2} | ({} if protocols else {"samples": 2})


METRIC = Metric(
    Table(
        "fd",
        "Fréchet distance ({})",
        "Squared distance between the features of generated and of test images; lower is better. "
        "Compare it with the floor, which real images reach, and with recon_train, which a "
        "perfect prior would reach. It compares neither with FID on Inception features nor across "
        "numbers of samples.",
        better="lower",
        bars=True,
    ),
    Table(
        "fid",
        "Fréchet Inception Distance ({})",
        "Squared distance between the Inception features of generated and of real images, by this "
        "protocol and variant of the input; lower is better. It compares only under the same "
        "protocol and variant. The spread is over draws of the compared images, with a fixed "
        "reference.",
        better="lower",
        bars=True,
    ),
    extractor="efficientnet_lite0",
    on_features=True,
    least=least,
    check=check,
)


def evaluate(
    ctx: Context, features: Features, *, protocols: Sequence[str] | None = None
) -> dict[str, float]:
    """Returns squared Fréchet distances and their standard errors, '…/spread'.

    Without protocols they are '<metric>/<set>', of `num_samples` images from the whole test set,
    and the errors are over draws of both. A protocol is a number of samples and what they are
    compared with: '50k_train' (50000 samples against all training data), '10k_test' (10000 against
    the test set), or any other number; of two given sets it is '<N>_samples'. Keys are then
    '<metric>/<protocol>/<set>', or '<metric>/<protocol>/<variant>/<set>' if the extractor has
    variants of its input. The reference is part of the protocol, so the errors take it as fixed,
    and its statistics are cached by content. Given statistics of these features are fixed, too.

    <set> is each prior; 'floor', as many real images of the other split; 'recon', reconstructions
    of the reference's images (of the whole test set); 'recon_<other split>', reconstructions of the
    floor's images, which a perfect prior would reach through this decoder; and 'midpoints', as
    many, decoded midpoints between the embeddings of random pairs of test images. Distances of
    different numbers do not compare. 'flag/fewer_images_than_features' is the number of images if
    it is at most that of features, 'flag/floor_images' that of the floor if the other split is too
    small.
    """
    ctx.require_images(features.metric)
    about = {"extractor": features.extractor, **features.identity()}
    values: dict[str, float] = {}
    given = ctx.statistics
    if given and ctx.has("test") and statistics.dimensions(given) != features.module.DIM:
        given = None  # of other features, beside images
    for protocol, (num, split) in _chosen(ctx, protocols).items():
        label = "/".join(filter(None, (protocol, about.get("variant") if protocol else None)))
        if given:
            moments = statistics.read(given, dim=features.module.DIM, about=about)
            reference = Sample.of_moments(*moments)
        elif not protocol:
            reference = Sample(features.of(split))
        else:
            reference = Sample.of_moments(*features.moments(split))
        counts = [reference.num] if reference.num else []
        what = f"'{split}'" if ctx.has("model") else "the reference"
        require_finite(features.metric, what, reference.mean)
        # Other metrics, too, use the features of sets of this size.
        shared = not protocol or (split == "test" and num == ctx.num_samples <= ENOUGH)
        samples = _shared(ctx, features) if shared else _streamed(ctx, features, num, split)
        for what, sample in samples:
            require_finite(features.metric, f"'{what}'", sample.mean)
            value, spread = frechet_estimate(sample, reference)
            key = "/".join(filter(None, (features.metric, label, what)))
            values |= {key: value, f"{key}/spread": spread}
            counts.append(sample.num)
            if what == "floor":
                values |= small_floor(features, sample.num, num, label)
        values |= few_images(features, counts, len(reference.mean), label)
    return values


def parse(protocol: str) -> tuple[int, str]:
    """Returns a protocol's number of samples and the split of its reference.

    Raises:
        UserError: if there is no such protocol.
    """
    match = re.fullmatch(r"([1-9][0-9]*)(k?)_(train|test)", protocol)
    if not match or match[1] + match[2] == "1":
        raise UserError(
            f"'{protocol}' is not a protocol of FID: give a number of samples, at least 2, and "
            "what they are compared with, such as 50k_train, 10k_test or 2500_test."
        )
    return int(match[1]) * (1000 if match[2] else 1), match[3]


def _chosen(ctx: Context, protocols: Sequence[str] | None) -> dict[str, tuple[int, str]]:
    if protocols is None:
        return {"": (ctx.num_samples, "test")}
    if not ctx.has("model"):
        return {f"{ctx.num_samples}_samples": (ctx.num_samples, "test")}
    return {name: parse(name) for name in protocols or ("",)}


def _shared(ctx: Context, features: Features) -> Iterator[tuple[str, Sample]]:
    """Yields the sets to compare with the test set, with all of their features."""
    for what, source in ctx.compared(OF_DECODER).items():
        yield what, Sample(features.of(source))


def _streamed(
    ctx: Context, features: Features, num: int, split: str
) -> Iterator[tuple[str, Sample]]:
    """Yields the sets to compare, with the moments and some of their features."""
    other = OTHER[split]
    sets: dict[str, tuple[Any, int]] = {
        prior: (ctx.sets[prior] if prior in ctx.sets else ctx.iter_samples(prior, num), num)
        for prior in ctx.priors
    }
    if ctx.has("train"):
        data, floor = getattr(ctx, other).data, ctx.subset(other, num)
        parts = np.split(floor, range(CHUNK, len(floor), CHUNK))
        sets["floor"] = (data[rows] for rows in parts), len(floor)
        if ctx.has("model"):
            recon = len(ctx.test.data) if split == "test" else min(num, len(ctx.train.data))
            sets["recon"] = map(to_uint8, ctx.reconstructed(split, recon)), recon
            sets[f"recon_{other}"] = map(to_uint8, ctx.reconstructed(other, num)), len(floor)
            sets["midpoints"] = ctx.midpoints(num), num
    for what, (images, count) in sets.items():
        yield what, Sample.of_parts(features.stream(images), count)
