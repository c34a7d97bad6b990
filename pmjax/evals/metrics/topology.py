"""Whether the embedding preserves the neighborhoods and the shape of the data."""

from collections.abc import Callable

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import minimum_spanning_tree, shortest_path
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr
from sklearn.manifold import trustworthiness

from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, higher, option
from pmjax.evals.context import Context

METRIC = Metric(
    Table(
        "topology",
        "Topology of the embedding",
        "Whether neighbors in data space are neighbors in latent space, and vice versa; 1 is "
        "perfect.",
        {
            "trustworthiness": higher(
                "falls when neighbors in latent space are not neighbors in the data"
            ),
            "continuity": higher("falls when neighbors in the data are torn apart"),
            "neighbours_kept": higher(
                "share of the nearest in the data that are nearest in the latents"
            ),
            "distance_correlation": higher("between data and embedding; 0 is independence"),
            "geodesic_correlation": higher("of distances along the data with those in the latents"),
        },
    ),
    least=lambda neighbours: {"test": 2 * neighbours + 1},
    limits={"neighbours": 1},
    check=lambda args: require_neighbors("topology", args["neighbours"], args["num"]),
)


def evaluate(ctx: Context, *, neighbours: int = 12, num: int = 2000) -> dict[str, float]:
    """Returns how well the embedding preserves the geometry of up to `num` test examples.

    Distances are Euclidean, for images between their pixels. Trustworthiness and continuity are
    those of Venna & Kaski, 2001; 'neighbours_kept' is 12 / (n - 1) by chance for 12 `neighbours`;
    'geodesic_correlation' is Spearman's, over all pairs, between `geodesic_distances` in the data
    and distances in the embedding.
    """
    chosen = ctx.subset("test", num)
    x = to_float(ctx.test.data[chosen]).reshape(len(chosen), -1)
    z = ctx.embeddings("test")[chosen]
    return preservation("topology", x, z, neighbours, along=geodesic_distances)


def require_neighbors(metric: str, neighbours: int, num: int) -> None:
    """Raises `UserError` unless there are more than twice as many examples as neighbors."""
    if num <= 2 * neighbours:
        raise UserError(
            f"Metric '{metric}' needs more than {2 * neighbours} test examples for {neighbours} "
            f"neighbors: set {option(metric, 'num')}, now {num}, higher, or "
            f"{option(metric, 'neighbours')} lower."
        )


def preservation(
    prefix: str,
    x: np.ndarray,
    z: np.ndarray,
    neighbours: int,
    *,
    along: Callable[[np.ndarray, int], np.ndarray] = lambda distances, _: distances,
) -> dict[str, float]:
    """Returns how well latents z [N, d] preserve the geometry of data x [N, D].

    `along` turns distances [N, N] of the data into those of 'geodesic_correlation'.
    """
    x, z = (rows - rows.mean(0) for rows in (x, z))  # ‖a‖² + ‖b‖² - 2ab then loses no digits
    a, b = (squareform(pdist(rows.astype(np.float64))) for rows in (x, z))
    apart = (squareform(each, checks=False) for each in (along(a, neighbours), b))
    values = {
        "trustworthiness": trustworthiness(x, z, n_neighbors=neighbours),
        "continuity": trustworthiness(z, x, n_neighbors=neighbours),
        "neighbours_kept": neighbours_kept(a, b, neighbours),
        "distance_correlation": distance_correlation(a, b),
        "geodesic_correlation": rank_correlation(*apart),
    }
    return {f"{prefix}/{name}": value for name, value in values.items()}


def neighbours_kept(a: np.ndarray, b: np.ndarray, neighbours: int) -> float:
    """Returns the share of each one's nearest by distances a [N, N] that are nearest by b too."""
    near = [_is_near(distances, neighbours) for distances in (a, b)]
    return float((near[0] & near[1]).sum() / near[0].sum())


def distance_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the distance correlation of two samples, from their distances a and b, [N, N] each.

    Bias-corrected (Székely & Rizzo, 2014): that of 2007 is far from 0 for independent samples of
    many dimensions. The root of R* = ⟨A, B⟩ / (⟨A, A⟩ ⟨B, B⟩)^½, 0 where R* is negative, with
    A_ii = 0 and elsewhere A_ij = a_ij - (Σ_l a_il + Σ_k a_kj) / (n-2) + Σ_kl a_kl / ((n-1)(n-2)).
    """
    a, b = _u_centered(a), _u_centered(b)
    scale = np.sqrt((a * a).sum() * (b * b).sum())
    return float(np.sqrt(max((a * b).sum() / scale, 0))) if scale > 0 else 0.0


def geodesic_distances(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns the lengths [N, N] of the shortest paths in a graph, as in Isomap.

    Its edges connect each example to its nearest ones. The minimum spanning tree is added, so that
    there is always a path (Tenenbaum, de Silva & Langford, 2000, drop unconnected examples).
    """
    # In a sparse graph an entry of 0 is no edge, and equal examples have distance 0.
    distances = np.maximum(distances, np.finfo(np.float32).tiny)
    np.fill_diagonal(distances, 0)
    tree = minimum_spanning_tree(csr_array(distances)).toarray() > 0
    edges = np.where(_is_near(distances, neighbours) | tree, distances, 0)
    return shortest_path(csr_array(edges), method="D", directed=False)


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Returns Spearman's correlation of two arrays [N], 0 if one is constant."""
    return 0.0 if np.ptp(a) == 0 or np.ptp(b) == 0 else float(spearmanr(a, b).statistic)


def _is_near(distances: np.ndarray, neighbours: int) -> np.ndarray:
    """Returns whether column j is among the nearest of row i, [N, N]."""
    apart = distances + np.diag(np.full(len(distances), np.inf))
    nearest = np.argpartition(apart, neighbours - 1, axis=1)[:, :neighbours]
    near = np.zeros(distances.shape, bool)
    np.put_along_axis(near, nearest, True, axis=1)
    return near


def _u_centered(distances: np.ndarray) -> np.ndarray:
    n = len(distances)
    rows = distances.sum(0) / (n - 2)
    centered = distances - rows - rows[:, None] + distances.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centered, 0)
    return centered
