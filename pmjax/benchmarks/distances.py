"""The two sides of the Fréchet distance benchmark: ours, and NumPy's with SciPy's."""

from importlib import metadata

import numpy as np
from scipy import linalg

from pmjax.benchmarks.process import About, Block, repeat
from pmjax.datasets.decode_pool import cores
from pmjax.evals.frechet import Sample, frechet_distance

FACTORS = 64  # shared by the features
Array = np.ndarray


class Ours:
    """Statistics streamed in float64, and the distance from factors of the covariances."""

    packages: tuple[str, ...] = ("pmjax", "numpy", "scipy")

    def __init__(self, *, size: int, dim: int):
        """Draws two sets of `size` features of `dim` dimensions."""
        self._sets = [random_features(size, dim, seed=seed) for seed in (0, 1)]
        self.about = About(
            first=self._distance(*self._sets),
            device="cpu",
            threads=cores(),
            versions={name: metadata.version(name) for name in self.packages},
        )

    def _distance(self, a: Array, b: Array) -> float:
        return frechet_distance(Sample(a), Sample(b))

    def block(self, seconds: float) -> Block:
        """Computes the distance of the same two sets repeatedly."""
        return repeat(lambda: self._distance(*self._sets), seconds)


class SciPy(Ours):
    """`numpy.cov`, and `scipy.linalg.sqrtm` of the product of covariances, as in pytorch-fid."""

    packages = ("numpy", "scipy")

    def _distance(self, a: Array, b: Array) -> float:
        (mean1, cov1), (mean2, cov2) = (
            (x.mean(0, dtype=np.float64), np.cov(x, rowvar=False)) for x in (a, b)
        )
        shift, root = mean1 - mean2, linalg.sqrtm(cov1 @ cov2)
        return float(shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def random_features(size: int, dim: int, *, seed: int) -> Array:
    """Returns correlated nonnegative float32 features [size, dim], as after a ReLU.

    Sets with different seeds also differ in their spread.
    """
    loads = np.random.default_rng(2).standard_normal((FACTORS, dim), np.float32)
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((size, FACTORS), np.float32)
    features = rng.standard_normal((size, dim), np.float32) / 2
    features += common @ (loads * np.float32((1 + seed / 5) / FACTORS**0.5))
    return np.maximum(features, 0, out=features)
