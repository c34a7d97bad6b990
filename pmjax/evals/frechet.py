"""The Fréchet distance between two Gaussians and its spread, in float64 (Dowson & Landau, 1982)."""

from collections.abc import Iterable, Iterator

import numpy as np
from scipy.linalg import solve_triangular
from scipy.linalg.lapack import dpstrf

from pmjax.errors import UserError
from pmjax.evals.features.base import moments

BLOCK = 4096  # rows in float64 at a time
ENOUGH = 10_000  # rows that determine the variance of an influence to a few percent


class Sample:
    """Features [N, D] of a set, with their moments and a factor of their covariance."""

    def __init__(self, features: np.ndarray):
        num, dim = features.shape
        if num < 2:
            raise UserError(f"A Fréchet distance needs at least two examples per set, got {num}.")
        self.features: np.ndarray | None = features
        self.pivots: np.ndarray | None = None
        self.num = num
        if num > dim:
            self.mean, cov, _ = moments([features])
            self.factor, self.pivots = _factor(cov)
        else:  # the examples themselves are a smaller factor of their covariance
            self.mean = features.mean(0, dtype=np.float64)
            self.factor = (features - self.mean) / np.sqrt(num - 1)
        self.trace = np.sum(self.factor**2)

    @classmethod
    def of_moments(
        cls, mean: np.ndarray, cov: np.ndarray, num: int, features: np.ndarray | None = None
    ) -> "Sample":
        """Returns the sample of `num` examples with these moments.

        `features` are an even selection of theirs; without any, it is a fixed reference.
        """
        sample = cls.__new__(cls)
        sample.features, sample.num, sample.mean = features, num, mean
        sample.factor, sample.pivots = _factor(cov)
        sample.trace = np.trace(cov)
        return sample

    @classmethod
    def of_parts(cls, parts: Iterable[np.ndarray], num: int) -> "Sample":
        """Returns the sample of `num` features in parts, and stores at most `ENOUGH` of them."""
        step, start = -(-num // ENOUGH), 0
        selected: list[np.ndarray] = []

        def select() -> Iterator[np.ndarray]:
            nonlocal start
            for part in parts:
                selected.append(part[-start % step :: step])
                start += len(part)
                yield part

        mean, cov, count = moments(select())
        features = np.concatenate(selected)
        if count <= len(mean):
            return cls(features)
        return cls.of_moments(mean, cov, count, features)


def frechet_distance(a: Sample, b: Sample) -> float:
    """Returns ‖m₁ - m₂‖² + tr(S₁ + S₂ - 2 (S₁^½ S₂ S₁^½)^½), the squared distance.

    With any factors Sᵢ = Fᵢᵀ Fᵢ, the trace of the square root is the sum of the singular values
    of F₁ F₂ᵀ, so no matrix square root (`sqrtm`) is computed. Pivoted Cholesky factors have as many
    rows as the covariance has rank: fewer examples than dimensions cost less time and no accuracy,
    and no root is taken of rounding errors.
    """
    dims = a.factor.shape[1], b.factor.shape[1]
    if dims[0] != dims[1]:
        raise UserError(
            f"Features of {dims[0]} and of {dims[1]} dimensions have no distance: use "
            "statistics of both sets with the same extractor."
        )
    return _distance(a, b, np.linalg.svd(a.factor @ b.factor.T, compute_uv=False))


def frechet_estimate(a: Sample, b: Sample) -> tuple[float, float]:
    """Returns the Fréchet distance of two sets and its standard error over draws of both.

    The error is the infinitesimal jackknife's (Jaeckel, 1972): (Var ψ_a / N_a + Var ψ_b / N_b)^½,
    with the influence of an example on the distance, ψ_a(x) = 2 (m_a - m_b)ᵀ y + yᵀ (1 - T) y for
    y = x - m_a, where T is the linear map of a's Gaussian to b's. A bootstrap would cost a
    decomposition per draw and, because it repeats examples, have a lower rank than the data. The
    error does not include the distance's bias, which `frechet_infinity` removes; between sets of
    one distribution, where the influence vanishes to first order, it is too large by about √2. A
    set without features, which is a fixed reference, adds nothing.
    """
    left, singular, right = np.linalg.svd(a.factor @ b.factor.T, full_matrices=False)
    variance = 0.0
    if a.features is not None:
        variance += _variance(a, b.mean, left * np.sqrt(singular))
    if b.features is not None:
        variance += _variance(b, a.mean, right.T * np.sqrt(singular))
    return _distance(a, b, singular), float(np.sqrt(variance))


def frechet_infinity(
    features: np.ndarray, reference: Sample, *, points: int, seed: int, where: str = ""
) -> tuple[float, float]:
    """Returns the Fréchet distance of infinitely many examples, and its standard error.

    Chong & Forsyth, 2020: a line in 1 / size is fitted to the distances of `points` random subsets
    of N/10 to N examples, at equal steps, from the whole reference; its value at 0 is returned.
    The error combines that of the fit and that of the distance of all N examples. `where` precedes
    an argument's name in messages.
    """
    sizes = np.linspace(len(features) // 10, len(features), points).astype(int)
    if points < 3 or len(np.unique(sizes)) < points or sizes[0] < 2:
        raise UserError(
            f"A line cannot be fitted to {points} subsets of a tenth to all of {len(features)} "
            f"examples: set {where}points to at least 3, and use at least "
            f"{max(20, 2 * points)} examples."
        )
    rng = np.random.default_rng(seed)
    whole, error = frechet_estimate(Sample(features), reference)
    distances = []
    for size in sizes[:-1]:
        part = Sample(features[rng.permutation(len(features))[:size]])
        distances.append(frechet_distance(part, reference))
    (_, value), covariance = np.polyfit(1 / sizes, [*distances, whole], 1, cov=True)
    return float(value), float(np.hypot(np.sqrt(covariance[1, 1]), error))


def _distance(a: Sample, b: Sample, singular: np.ndarray) -> float:
    shift = a.mean - b.mean
    return max(float(shift @ shift + a.trace + b.trace - 2 * singular.sum()), 0.0)


def _variance(sample: Sample, other_mean: np.ndarray, vectors: np.ndarray) -> float:
    """Returns Var ψ / N, from this set's singular vectors times the roots of the values."""
    influence = np.concatenate(
        [
            2 * y @ (sample.mean - other_mean) + np.sum(y**2, axis=1) - transported
            for y, transported in _transported(sample, vectors)
        ]
    )
    return influence.var() / sample.num


def _transported(sample: Sample, vectors: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields centered examples y with yᵀ T y = ‖cᵀ vectors‖², y = Fᵀ c; nothing is inverted."""
    assert sample.features is not None
    if sample.pivots is None:
        scale = sample.num - 1
        yield sample.factor * np.sqrt(scale), scale * np.sum(vectors**2, axis=1)
        return
    inverse = solve_triangular(sample.factor[:, sample.pivots], vectors)
    rows = sample.features[:: -(-len(sample.features) // ENOUGH)]
    for start in range(0, len(rows), BLOCK):
        y = rows[start : start + BLOCK] - sample.mean
        yield y, np.sum((y[:, sample.pivots] @ inverse) ** 2, axis=1)


def _factor(cov: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns F [rank, D] with Fᵀ F = cov, and the columns [rank] that make it triangular."""
    tolerance = len(cov) * np.finfo(np.float64).eps * max(cov.diagonal().max(), 0)
    factor, pivots, rank, _ = dpstrf(cov, tol=tolerance)
    factor = np.triu(factor)[:rank]
    return factor[:, np.argsort(pivots)], pivots[:rank] - 1
