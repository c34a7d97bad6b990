"""The Kernel Inception Distance (Bińkowski et al., 2018)."""

from pmjax.evals import relatives
from pmjax.evals.context import Context

EXTRACTOR = "inception_2015"


def evaluate(ctx: Context, *, subset_size: int = 1000, subsets: int = 100) -> dict[str, float]:
    """Returns KID to the test set as 'kid/<set>', not multiplied by 1000.

    The mean over `subsets` random subsets, whose deviation is the spread: see `_relatives.kernel`
    for subsets of small sets, and `_relatives` for the sets and their keys.
    """
    return relatives.kernel(ctx, "kid", EXTRACTOR, subset_size=subset_size, subsets=subsets)
