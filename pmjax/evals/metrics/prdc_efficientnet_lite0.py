"""Precision, recall, density and coverage of the samples, on EfficientNet-Lite0 features."""

from pmjax.evals import relatives
from pmjax.evals.context import Context

EXTRACTOR = "efficientnet_lite0"


def evaluate(
    ctx: Context,
    *,
    neighbours: int = 3,
    density_neighbours: int = 5,
    resolution: int | None = None,
) -> dict[str, float]:
    """Returns 'prdc_efficientnet_lite0/<quantity>/<prior>' and '…/floor', against the test set.

    Quantities are 'precision', 'recall', 'density' and 'coverage' (see `_manifold.prdc`), the first
    two with `neighbours`, the others with `density_neighbours`; keys are those of `_relatives`. All
    depend on the numbers of images, so read them against the floor.
    """
    return relatives.manifold(
        ctx,
        "prdc_efficientnet_lite0",
        EXTRACTOR,
        neighbours=neighbours,
        density_neighbours=density_neighbours,
        resolution=resolution,
    )
