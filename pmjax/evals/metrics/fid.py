"""FID: the Fréchet distance between Inception features (Heusel et al., arXiv 1706.08500)."""

from collections.abc import Sequence

from pmjax.evals.context import Context

EXTRACTOR = "inception_2015"


def evaluate(ctx: Context, *, protocols: Sequence[str] = ("10k_test",)) -> dict[str, float]:
    """Returns FIDs as 'fid/<protocol>/<variant>/<what>', and their standard errors '…/spread'.

    Protocols and <what> are those of `_protocols.frechet`; the variant is that of
    `_features.inception_2015`. FIDs of different numbers or variants do not compare.
    'flag/fewer_images_than_features' is the number of images where it is at most 2048.
    """
    return frechet(ctx, "fid", EXTRACTOR, protocols=protocols, setting="variant")
