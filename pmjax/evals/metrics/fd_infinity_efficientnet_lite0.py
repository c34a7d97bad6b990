"""The Fréchet distance of infinitely many samples, on EfficientNet-Lite0 features; not FID∞."""

from pmjax.evals import relatives
from pmjax.evals.context import Context

EXTRACTOR = "efficientnet_lite0"


def evaluate(ctx: Context, *, points: int = 15, resolution: int | None = None) -> dict[str, float]:
    """Returns Fréchet distances to the test set without the bias of the number of samples.

    Chong & Forsyth, 2020: 'fd_infinity_efficientnet_lite0/<prior>' and '…/floor', from `points`
    sizes of subset; see `_frechet.frechet_infinity` and, for keys, `_relatives`. The bias of the
    finite test set remains, and the floor shows it. Subsets begin at a tenth of the samples:
    'flag/fewer_images_than_features' says how many where that is at most 1280.
    """
    return relatives.frechet_at_infinity(
        ctx,
        "fd_infinity_efficientnet_lite0",
        EXTRACTOR,
        points=points,
        resolution=resolution,
    )
