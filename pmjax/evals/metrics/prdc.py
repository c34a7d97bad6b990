"""Precision, recall, density and coverage of features of images against the test set's."""

from collections.abc import Iterator

import numpy as np
from sklearn.metrics import euclidean_distances
from sklearn.utils.extmath import row_norms

from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, option
from pmjax.evals.context import Context
from pmjax.evals.feature_sets import feature_sets, floor_of, with_spreads
from pmjax.evals.features.base import Features

BLOCK = 1000  # rows of a matrix of distances in memory at a time
PARTS = 10  # of both sets, for the spread
PART = 10  # least examples of a part for each neighbor
VALUES = 20  # least number of values from parts that the spread is computed from

METRIC = Metric(
    *(
        Table(
            f"prdc/{quantity}",
            f"{quantity.capitalize()} ({{}})",
            meaning,
            better="higher",
            bars=True,
        )
        for quantity, meaning in {
            "precision": "Share of the images that lie among real ones, by their features: the "
            "quality of single images. The floor is that of real ones.",
            "recall": "Share of the test images that lie among these images, by their features: "
            "variety. The floor is that of real ones.",
            "density": "In how many balls of real images an image lies, divided by their number "
            "k: like precision, but less affected by outliers; may exceed 1.",
            "coverage": "Share of the test images with an image nearby: variety, less affected by "
            "outliers than recall.",
        }.items()
    ),
    extractor="efficientnet_lite0",
    on_features=True,
    least=lambda neighbours, density_neighbours: 2 * PART * max(neighbours, density_neighbours),
    limits={"neighbours": 1, "density_neighbours": 1},
)


def evaluate(
    ctx: Context, features: Features, *, neighbours: int = 3, density_neighbours: int = 5
) -> dict[str, float]:
    """Returns '<metric>/<quantity>/<prior>' and '…/floor', against the test set, with spreads.

    Quantities are 'precision', 'recall', 'density' and 'coverage' (see `prdc`), the first two with
    `neighbours`, the others with `density_neighbours`. All depend on the numbers of images, so
    compare them with the floor.
    """
    reference, sets = feature_sets(ctx, features)
    where, seed = option(features.metric), ctx.derived_seed("manifold")

    def manifold(x: np.ndarray) -> Manifold:
        return Manifold(
            x, neighbours=neighbours, density_neighbours=density_neighbours, where=where
        )

    test = manifold(reference)
    estimates = {what: prdc_estimate(test, manifold(x), seed=seed) for what, x in sets.items()}
    values: dict[str, float] = {}
    for quantity in ("precision", "recall", "density", "coverage"):
        each = {what: estimate[quantity] for what, estimate in estimates.items()}
        values |= with_spreads(f"{features.metric}/{quantity}", each)
    return values | floor_of(features, sets)


class Manifold:
    """A set of features [N, D] with a ball around each, to its k-th nearest other.

    `neighbours` is k of precision and recall, `density_neighbours` that of density and coverage;
    `where` precedes their names in messages.
    """

    def __init__(
        self, features: np.ndarray, *, neighbours: int, density_neighbours: int, where: str = ""
    ):
        ks = [neighbours, density_neighbours]
        if not 1 <= min(ks) <= max(ks) < len(features):
            raise UserError(
                f"{len(features)} examples are too few for {max(ks)} nearest neighbors of each: "
                f"set {where}neighbours and {where}density_neighbours to at least 1 and fewer than "
                "the examples."
            )
        self.features, self.ks, self.where = features, ks, where
        self.radii, self.density_radii = np.concatenate(
            [  # an example is the nearest to itself
                np.partition(squared, sorted(set(ks)), axis=1)[:, ks]
                for _, squared in _squared_distances(features, features)
            ]
        ).T

    def part(self, rows: np.ndarray) -> "Manifold":
        """Returns the manifold of some of the examples alone."""
        neighbours, density_neighbours = self.ks
        return Manifold(
            self.features[rows], neighbours=neighbours, density_neighbours=density_neighbours
        )


def prdc(real: Manifold, fake: Manifold) -> dict[str, float]:
    """Returns precision, recall, density and coverage of a set against the real one.

    Precision is the share of fakes within a ball of reals, recall the share of reals within a ball
    of fakes (Kynkäänniemi et al., 2019; balls closed); density the mean number of balls of reals
    that a fake is in, over k, and coverage the share of reals whose ball holds a fake (Naeem et
    al., 2020; balls open, as in the authors' code). Density may exceed 1.
    """
    precise, balls = np.empty(len(fake.features), bool), np.empty(len(fake.features))
    recalled, nearest = np.zeros(len(real.features), bool), np.full(len(real.features), np.inf)
    for rows, squared in _squared_distances(fake.features, real.features):
        precise[rows] = (squared <= real.radii).any(1)
        balls[rows] = (squared < real.density_radii).sum(1)
        recalled |= (squared <= fake.radii[rows, None]).any(0)
        nearest = np.minimum(nearest, squared.min(0))
    return {
        "precision": float(precise.mean()),
        "recall": float(recalled.mean()),
        "density": float(balls.mean() / real.ks[1]),
        "coverage": float((nearest < real.density_radii).mean()),
    }


def prdc_estimate(real: Manifold, fake: Manifold, *, seed: int) -> dict[str, tuple[float, float]]:
    """Returns each value of `prdc` with its standard error over draws of both sets.

    The error is the deviation between disjoint random tenths of both, over √10, averaged over two
    such divisions, at a fifth of the cost of the whole. Small sets are divided into fewer parts, of
    at least 10 examples per neighbor, more often.
    """
    values = prdc(real, fake)
    smallest = min(len(real.features), len(fake.features))
    parts = min(PARTS, smallest // (PART * max(real.ks)))
    if parts < 2:
        raise UserError(
            f"{smallest} examples are too few for the spread of precision, recall, density and "
            f"coverage with {max(real.ks)} neighbours: take {2 * PART * max(real.ks)} at least, or "
            f"set {real.where}neighbours and {real.where}density_neighbours lower."
        )
    rng = np.random.default_rng(seed)
    variances = []
    for _ in range(-(-VALUES // parts)):
        rows = [np.array_split(rng.permutation(len(m.features)), parts) for m in (real, fake)]
        each = [prdc(real.part(a), fake.part(b)) for a, b in zip(*rows, strict=True)]
        variances.append([np.var([part[name] for part in each], ddof=1) for name in values])
    errors = np.sqrt(np.mean(variances, axis=0) / parts)
    return {name: (values[name], float(error)) for name, error in zip(values, errors, strict=True)}


def _squared_distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields blocks of rows of a, with their squared distances to all of b, [BLOCK, len(b)].

    They are ‖a‖² + ‖b‖² - 2ab, in which a mean far from 0 would cancel most digits.
    """
    mean = b.mean(0, dtype=np.float64)
    b = b - mean
    squares = row_norms(b, squared=True)
    for start in range(0, len(a), BLOCK):
        rows = slice(start, min(start + BLOCK, len(a)))
        yield rows, euclidean_distances(a[rows] - mean, b, Y_norm_squared=squares, squared=True)
