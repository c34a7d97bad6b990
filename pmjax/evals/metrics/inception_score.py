"""The Inception Score of the samples."""

import numpy as np
from scipy.special import rel_entr, softmax

from pmjax.errors import UserError
from pmjax.evals import relatives
from pmjax.evals.context import Context
from pmjax.evals.features.base import logits_of
from pmjax.evals.registry import option

EXTRACTOR = "inception_2015"


def evaluate(ctx: Context, *, splits: int = 10) -> dict[str, float]:
    """Returns 'inception_score/<prior>', and '…/floor' of as many training images.

    Salimans et al., 2016: the mean over `splits` random parts of the samples, whose deviation is
    the spread; higher is better. It knows ImageNet's classes alone and no reference, so that it
    says little elsewhere: read it against the floor. 'flag/fewer_images_than_classes' is the number
    of images of a part where that is below the number of classes, which bounds the score, and
    'flag/floor_images' that of a floor that is smaller than the samples.
    """
    # Without the bias, as in the first implementation.
    return scores(ctx, "inception_score", EXTRACTOR, splits=splits, bias=False)


def scores(
    ctx: Context, metric: str, extractor: str, *, splits: int, bias: bool, **args
) -> dict[str, float]:
    """Returns the scores of the samples and of the floor by an extractor's classes."""
    ctx.require_images(metric)
    sets = {
        what: logits_of(ctx, extractor, source, bias=bias, **args)
        for what, source in ctx.compared(()).items()
    }
    given = {"splits": splits, "seed": ctx.derived_seed("inception_score")}
    values = relatives.named(
        metric,
        {what: inception_score(x, **given, where=option(metric)) for what, x in sets.items()},
    )
    values |= relatives.floor_of(ctx, metric, sets)
    part = min(map(len, sets.values())) // splits
    classes = min(x.shape[1] for x in sets.values())
    if part < classes:
        values |= relatives.flag(
            ctx,
            metric,
            "fewer_images_than_classes",
            part,
            f"a part has {part} images, fewer than the {classes} classes, which bounds the score: "
            f"take more images, or fewer parts by {option(metric, 'splits')}.",
        )
    return values


def inception_score(
    logits: np.ndarray, *, splits: int, seed: int, where: str = ""
) -> tuple[float, float]:
    """Returns exp E KL(p(y|x) ‖ p(y)) of logits [N, classes]: mean and deviation over parts.

    `where` comes before an argument's name in messages.
    """
    if not 1 <= splits <= len(logits):
        raise UserError(
            f"{len(logits)} images cannot be divided into {splits} parts: set {where}splits to at "
            "least 1 and at most the number of images."
        )
    order = np.random.default_rng(seed).permutation(len(logits))
    scores = [
        np.exp(rel_entr(p, p.mean(0)).sum(1).mean())
        for p in np.array_split(softmax(logits[order].astype(np.float64), axis=1), splits)
    ]
    return float(np.mean(scores)), float(np.std(scores))
