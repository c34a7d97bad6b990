"""The Fréchet distance on EfficientNet-Lite0 features: an offline relative of FID, not FID."""

from pmjax.evals import Context, _relatives


def evaluate(ctx: Context, *, resolution: int | None = None) -> dict[str, float]:
    """Returns squared Fréchet distances to the whole test set, as 'fd_efficientnet_lite0/<set>'.

    The sets and their keys are those of `_relatives`. Distances depend on the number of images and
    on `resolution` (pixels, None: see `_features.efficientnet_lite0`), so compare only equals, and
    with the floor. 'flag/fewer_images_than_features' is the number of images of the smallest set
    where that is at most 1280.
    """
    return _relatives.frechet(
        ctx, "fd_efficientnet_lite0", "efficientnet_lite0", resolution=resolution
    )
