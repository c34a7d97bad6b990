"""The score of the samples by EfficientNet-Lite0's classes: an offline relative of IS, not IS."""

from pmjax.evals.context import Context
from pmjax.evals.metrics.inception_score import scores

EXTRACTOR = "efficientnet_lite0"


def evaluate(ctx: Context, *, splits: int = 10, resolution: int | None = None) -> dict[str, float]:
    """Returns 'is_efficientnet_lite0/<prior>', and '…/floor' of as many training images.

    The Inception Score's definition with the probabilities of this net's 1000 classes: see
    `inception_score` for it and its flags. It depends on `resolution` (pixels, None: see
    `_features.efficientnet_lite0`): read it against the floor.
    """
    return scores(
        ctx,
        "is_efficientnet_lite0",
        EXTRACTOR,
        splits=splits,
        bias=True,
        resolution=resolution,
    )
