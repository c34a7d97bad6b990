"""The kernel distance on EfficientNet-Lite0 features: an offline relative of KID, not KID."""

from pmjax.evals import relatives
from pmjax.evals.context import Context

EXTRACTOR = "efficientnet_lite0"


def evaluate(
    ctx: Context,
    *,
    subset_size: int = 1000,
    subsets: int = 100,
    resolution: int | None = None,
) -> dict[str, float]:
    """Returns unbiased kernel distances to the test set, as 'kd_efficientnet_lite0/<set>'.

    The mean over `subsets` random subsets, whose deviation is the spread: see `_relatives.kernel`
    for subsets of small sets, and `_relatives` for the sets and their keys.
    """
    return relatives.kernel(
        ctx,
        "kd_efficientnet_lite0",
        EXTRACTOR,
        subset_size=subset_size,
        subsets=subsets,
        resolution=resolution,
    )
