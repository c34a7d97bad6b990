"""FID of infinitely many samples (Chong & Forsyth, 2020)."""

from pmjax.evals import relatives
from pmjax.evals.context import Context

EXTRACTOR = "inception_2015"


def evaluate(ctx: Context, *, points: int = 15) -> dict[str, float]:
    """Returns FID to the test set without the bias of the number of samples.

    'fid_infinity/<prior>' and 'fid_infinity/floor', from `points` sizes of subset; see
    `_frechet.frechet_infinity` and, for keys, `_relatives`. The bias of the finite test set
    remains, and the floor shows it. Subsets begin at a tenth of the samples: take 20,500 or more,
    or 'flag/fewer_images_than_features' says how many the smallest has.
    """
    return relatives.frechet_at_infinity(ctx, "fid_infinity", EXTRACTOR, points=points)
