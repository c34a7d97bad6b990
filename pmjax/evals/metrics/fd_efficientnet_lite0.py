"""The Fréchet distance on EfficientNet-Lite0 features: an offline relative of FID, not FID."""

from collections.abc import Sequence

from pmjax.evals.context import Context

EXTRACTOR = "efficientnet_lite0"


def evaluate(
    ctx: Context, *, protocols: Sequence[str] | None = None, resolution: int | None = None
) -> dict[str, float]:
    """Returns squared Fréchet distances to the whole test set, as 'fd_efficientnet_lite0/<what>'.

    With `protocols`, such as '50k_train', they are 'fd_efficientnet_lite0/<protocol>/<what>', as
    FID's are: see `_protocols.frechet`, and for <what> too. Distances depend on the number of
    images and on `resolution` (pixels, None: see `_features.efficientnet_lite0`), so compare only
    equals, and with the floor. 'flag/fewer_images_than_features' is the number of images of the
    smallest set where that is at most 1280.
    """
    return frechet(
        ctx,
        "fd_efficientnet_lite0",
        EXTRACTOR,
        protocols=protocols,
        resolution=resolution,
    )
