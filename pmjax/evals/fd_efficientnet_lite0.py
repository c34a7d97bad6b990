"""The Fréchet distance on EfficientNet-Lite0 features: an offline relative of FID, not FID."""

from pmjax.evals import Context
from pmjax.evals._features import features_of
from pmjax.evals._frechet import frechet_distance, gaussian

NAME = "efficientnet_lite0"


def evaluate(ctx: Context, *, resolution: int | None = None) -> dict[str, float]:
    """Returns squared Fréchet distances to the whole test set, as 'fd_efficientnet_lite0/<what>'.

    <what> is each prior (`num_samples` samples), 'floor' (as many training images: what perfect
    samples would reach), 'recon' (reconstructions of the test set against itself, the usual
    protocol) and 'recon_train' (reconstructions of the floor's images: what a perfect prior would
    reach through this decoder). Distances depend on the number of images and on `resolution`
    (pixels, None: see `_features.efficientnet_lite0`), so compare only equals, and with the floor.
    """
    ctx.require_images(f"fd_{NAME}")

    def moments(source):
        return gaussian(features_of(ctx, NAME, source, resolution=resolution))

    reference = moments("test")
    sources = dict(zip(ctx.priors, ctx.priors, strict=True))
    sources |= {"floor": "train", "recon": "recon", "recon_train": "recon_train"}
    return {
        f"fd_{NAME}/{what}": frechet_distance(*moments(source), *reference)
        for what, source in sources.items()
    }
