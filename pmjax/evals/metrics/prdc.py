"""Precision, recall, density and coverage of the samples, on Inception features."""

from pmjax.evals import relatives
from pmjax.evals.context import Context

EXTRACTOR = "inception_2015"


def evaluate(ctx: Context, *, neighbours: int = 3, density_neighbours: int = 5) -> dict[str, float]:
    """Returns 'prdc/<quantity>/<prior>' and 'prdc/<quantity>/floor', against the test set.

    Quantities are 'precision', 'recall', 'density' and 'coverage' (see `_manifold.prdc`), the first
    two with `neighbours`, the others with `density_neighbours`; keys are those of `_relatives`. All
    depend on the numbers of images, so read them against the floor.
    """
    return relatives.manifold(
        ctx, "prdc", EXTRACTOR, neighbours=neighbours, density_neighbours=density_neighbours
    )
