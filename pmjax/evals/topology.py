"""Whether the embedding keeps the neighbourhoods of the data."""

from sklearn.manifold import trustworthiness

from pmjax.datasets import to_float
from pmjax.errors import UserError
from pmjax.evals import Context


def evaluate(ctx: Context, *, neighbours: int = 12, num: int = 2000) -> dict[str, float]:
    """Returns trustworthiness and continuity of the embedding of up to `num` test examples.

    Venna & Kaski, 2001, with 12 neighbours by default and Euclidean distances, for images between
    their pixels. 'topology/trustworthiness' falls when neighbours in the embedding are none in the
    data, 'topology/continuity' when neighbours in the data are torn apart; 1 is perfect.
    """
    chosen = ctx.subset("test", num)
    if not 1 <= neighbours < len(chosen) / 2:
        raise UserError(
            f"Metric 'topology' needs more than {2 * neighbours} test examples for "
            f"{neighbours} neighbours and has {len(chosen)}: set fewer neighbours, at least 1."
        )
    x = to_float(ctx.test.data[chosen]).reshape(len(chosen), -1)
    z = ctx.embeddings("test")[chosen]
    return {
        "topology/trustworthiness": trustworthiness(x, z, n_neighbors=neighbours),
        "topology/continuity": trustworthiness(z, x, n_neighbors=neighbours),
    }
