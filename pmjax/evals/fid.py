"""FID: the Fréchet distance between Inception features (Heusel et al., arXiv 1706.08500)."""

import re
import sys
from collections.abc import Iterator, Sequence

import numpy as np

from pmjax.errors import UserError
from pmjax.evals import CHUNK, Context
from pmjax.evals._features import _statistics, arguments, moments, moments_of, use
from pmjax.evals._frechet import frechet_distance

EXTRACTOR = "inception_2015"
OTHER = {"train": "test", "test": "train"}


def evaluate(ctx: Context, *, protocols: Sequence[str] = ("10k_test",)) -> dict[str, float]:
    """Returns FIDs as 'fid/<protocol>/<variant>/<what>'.

    A protocol is a number of samples and what they are compared with: '50k_train' (50000 samples
    against all training data), '10k_test' (10000 against the test set), or any other number. Of two
    given sets it is '<N>_samples'. The variant is that of `_features.inception_2015`.

    <what> is each prior; 'floor', as many real images of the other split; 'recon', reconstructions
    of the reference's images (of the test set all); and 'recon_<other split>', reconstructions of
    the floor's, which a perfect prior would reach through this decoder. FIDs of different numbers
    or variants do not compare. 'flag/fewer_images_than_features' is the number of images where it
    is at most 2048, 'flag/floor_images' that of the floor where the other split has too few.
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
            reference = _statistics.read(ctx.statistics, dim=module.DIM, about=about)
        else:
            data = getattr(ctx, split)
            reference = ctx.cached(
                ("reference", EXTRACTOR, split, *sorted(args.items())),
                lambda data=data: _statistics.cached(
                    about,
                    data.fingerprint,
                    lambda: moments(module.stream(data.data, **args)),
                    module.DIM,
                ),
            )
        counts = [reference[2]] if reference[2] else []
        for what, (mean, cov, count) in _sets(ctx, module, args, num, split):
            values[f"{prefix}/{what}"] = frechet_distance(mean, cov, *reference[:2])
            counts.append(count)
            if what == "floor" and count < num:
                values[f"{prefix}/flag/floor_images"] = count
        if min(counts) <= module.DIM:
            values[f"{prefix}/flag/fewer_images_than_features"] = min(counts)
            print(
                f"{prefix}: {min(counts)} images are no more than the {module.DIM} features: the "
                "covariance has not full rank, and the distance a large bias. Compare with the "
                "floor only.",
                file=sys.stderr,
            )
    return values


def _sets(ctx, module, args, num, split) -> Iterator[tuple[str, tuple]]:
    """Yields (what, moments of its features)."""
    if split == "test" and num == ctx.num_samples:  # the sets of other metrics, too
        for what, source in ctx.compared().items():
            yield what, moments_of(ctx, EXTRACTOR, source)
        return
    other = OTHER[split]
    everything = len(ctx.test.data)
    sets = {prior: ctx.drawn(prior, num) for prior in ctx.priors}
    sets |= {
        "floor": _rows(getattr(ctx, other).data, ctx.subset(other, num)),
        "recon": ctx.reconstructed(split, everything if split == "test" else num),
        f"recon_{other}": ctx.reconstructed(other, num),
    }
    for what, parts in sets.items():
        yield what, moments(module.stream(parts, **args))


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
