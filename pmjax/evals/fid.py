"""FID: the Fréchet distance between Inception features (Heusel et al., arXiv 1706.08500)."""

import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from pmjax.errors import UserError
from pmjax.evals import CHUNK, Context
from pmjax.evals._features import _statistics, arguments, features_of, moments, use
from pmjax.evals._frechet import ENOUGH, Sample, frechet_estimate
from pmjax.evals._relatives import OF_DECODER

EXTRACTOR = "inception_2015"
OTHER = {"train": "test", "test": "train"}


def evaluate(ctx: Context, *, protocols: Sequence[str] = ("10k_test",)) -> dict[str, float]:
    """Returns FIDs as 'fid/<protocol>/<variant>/<what>', and their standard errors '…/spread'.

    A protocol is a number of samples and what they are compared with: '50k_train' (50000 samples
    against all training data), '10k_test' (10000 against the test set), or any other number. Of two
    given sets it is '<N>_samples'. The variant is that of `_features.inception_2015`.

    <what> is each prior; 'floor', as many real images of the other split; 'recon', reconstructions
    of the reference's images (of the test set all); 'recon_<other split>', reconstructions of the
    floor's, which a perfect prior would reach through this decoder; and 'midpoints', as many,
    decoded half-way between the embeddings of random pairs of test images. FIDs of different
    numbers or variants do not compare. 'flag/fewer_images_than_features' is the number of images
    where it is at most 2048, 'flag/floor_images' that of the floor where the other split has too
    few.

    The errors are those of `_frechet.frechet_estimate`, over draws of the images that are compared;
    the reference is part of the protocol, and so fixed.
    """
    ctx.require_images("fid")
    args = arguments(ctx, EXTRACTOR, {})
    module = use(ctx, EXTRACTOR, args)
    about = {"extractor": EXTRACTOR, **ctx.used[EXTRACTOR]}
    variant = about["variant"]
    values = {}
    if ctx.has("model"):
        chosen = {name: _parse(name) for name in protocols}
    else:
        chosen = {f"{ctx.num_samples}_samples": (ctx.num_samples, "test")}
    for protocol, (num, split) in chosen.items():
        prefix = f"fid/{protocol}/{variant}"
        if ctx.statistics:
            moments_of_reference = _statistics.read(ctx.statistics, dim=module.DIM, about=about)
        else:
            data = getattr(ctx, split)
            moments_of_reference = ctx.cached(
                ("reference", EXTRACTOR, split, *sorted(args.items())),
                lambda data=data: _statistics.cached(
                    about,
                    data.fingerprint,
                    lambda: moments(module.stream(data.data, **args)),
                    module.DIM,
                ),
                lasting=True,
            )
        reference = Sample.of_moments(*moments_of_reference)
        counts = [reference.num] if reference.num else []
        _require_finite("the reference", reference)
        for what, sample in _samples(ctx, module, args, num, split):
            _require_finite(f"'{what}'", sample)
            value, spread = frechet_estimate(sample, reference)
            values |= {f"{prefix}/{what}": value, f"{prefix}/{what}/spread": spread}
            counts.append(sample.num)
            if what == "floor" and sample.num < num:
                values[f"{prefix}/flag/floor_images"] = sample.num
        if min(counts) <= module.DIM:
            values[f"{prefix}/flag/fewer_images_than_features"] = min(counts)
            print(
                f"{prefix}: {min(counts)} images are no more than the {module.DIM} features: the "
                "covariance has not full rank, and the distance a large bias. Compare with the "
                "floor only.",
                file=sys.stderr,
            )
    return values


def _samples(ctx, module, args, num, split) -> Iterator[tuple[str, Sample]]:
    """Yields what is compared, and the moments of its features with some of them."""
    if split == "test" and num == ctx.num_samples <= ENOUGH:  # the features of other metrics, too
        for what, source in ctx.compared(OF_DECODER).items():
            yield what, Sample(features_of(ctx, EXTRACTOR, source))
        return
    other = OTHER[split]
    sets = {
        prior: (ctx.sets[prior] if prior in ctx.sets else ctx.drawn(prior, num), num)
        for prior in ctx.priors
    }
    if ctx.has("train"):
        floor = ctx.subset(other, num)
        sets["floor"] = _rows(getattr(ctx, other).data, floor), len(floor)
    if ctx.has("model"):
        recon = len(ctx.test.data) if split == "test" else min(num, len(ctx.train.data))
        sets["recon"] = ctx.reconstructed(split, recon), recon
        sets[f"recon_{other}"] = ctx.reconstructed(other, num), len(floor)
        sets["midpoints"] = ctx.midpoints(num), num
    for what, (parts, count) in sets.items():
        yield what, Sample.of_parts(module.stream(parts, **args), count)


def _require_finite(what: str, sample: Sample) -> None:
    if not np.isfinite(sample.mean).all():
        raise UserError(
            f"Metric 'fid': features of {what} hold NaN or infinite values. Check the weights of "
            "the extractor, and that the images are what they should be."
        )


def _rows(data: np.ndarray, chosen: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(chosen), CHUNK):
        yield data[chosen[start : start + CHUNK]]


def _parse(protocol: str) -> tuple[int, str]:
    """Returns the number of samples and the split of the reference."""
    match = re.fullmatch(r"([1-9][0-9]*)(k?)_(train|test)", protocol)
    if not match:
        raise UserError(
            f"'{protocol}' is no protocol of FID: give a number of samples and what they are "
            "compared with, such as 50k_train, 10k_test or 2500_test."
        )
    return int(match[1]) * (1000 if match[2] else 1), match[3]
