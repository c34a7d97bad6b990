"""The score of samples by a classifier of ImageNet (Salimans et al., 2016); the Inception Score."""

import numpy as np
from scipy.special import rel_entr, softmax

from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, option
from pmjax.evals.context import Context
from pmjax.evals.feature_sets import flag, floor_of, with_spreads
from pmjax.evals.features.base import Features

METRIC = Metric(
    Table(
        "is",
        "Classifier score ({})",
        "How certain a classifier of ImageNet is about each image, and how varied its classes "
        "are; higher is better. Compare it with the floor. It does not compare with the Inception "
        "Score, which is by another classifier.",
        better="higher",
    ),
    Table(
        "inception_score",
        "Inception Score",
        "How certain a classifier of ImageNet is about each image, and how varied its classes "
        "are; higher is better. It uses no reference and says little about images unlike "
        "ImageNet's: compare it with the floor.",
        better="higher",
    ),
    extractor="efficientnet_lite0",
    on_features=True,
    least=lambda splits: {"train": splits, "samples": splits},
    limits={"splits": 1},
)


def evaluate(ctx: Context, features: Features, *, splits: int = 10) -> dict[str, float]:
    """Returns '<metric>/<prior>', and '<metric>/floor' of as many training images.

    The mean over `splits` random parts of the samples, whose deviation is the spread.
    'flag/fewer_images_than_classes' is the number of images of a part if that is below the number
    of classes, which bounds the score, and 'flag/floor_images' that of a floor that is smaller than
    the samples.
    """
    ctx.require_images(features.metric)
    sets = {what: features.logits(source) for what, source in ctx.compared(()).items()}
    where, seed = option(features.metric), ctx.derived_seed("inception_score")
    estimates = {
        what: inception_score(x, splits=splits, seed=seed, where=where) for what, x in sets.items()
    }
    values = with_spreads(features.metric, estimates) | floor_of(features, sets)
    part = min(map(len, sets.values())) // splits
    classes = min(x.shape[1] for x in sets.values())
    if part < classes:
        why = (
            f"a part has {part} images, fewer than the {classes} classes, which bounds the score: "
            f"use more images, or fewer parts ({where}splits)."
        )
        values |= flag(features, "fewer_images_than_classes", part, why)
    return values


def inception_score(
    logits: np.ndarray, *, splits: int, seed: int, where: str = ""
) -> tuple[float, float]:
    """Returns exp E KL(p(y|x) ‖ p(y)) of logits [N, classes]: mean and deviation over parts.

    `where` precedes an argument's name in messages.
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
