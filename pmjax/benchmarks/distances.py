"""Two sides of a whole Fréchet distance, from features on: ours, and NumPy's with SciPy's."""

import time
from importlib import metadata

import numpy as np
from scipy import linalg

from pmjax.benchmarks.process import cores
from pmjax.evals.frechet import frechet_distance, gaussian

FACTORS = 64  # that features have in common


class _Side:
    """Computes the distance of the same two sets again and again.

    Attributes:
      first: the distance.
    """

    packages: tuple[str, ...]

    def __init__(self, *, size: int, dim: int):
        """Makes two sets of `size` features of `dim` dimensions."""
        self._sets = [random_features(size, dim, seed=seed) for seed in (0, 1)]
        self.device, self.threads = "cpu", cores()
        self.versions = {name: metadata.version(name) for name in self.packages}
        self.first = self._distance(*self._sets)

    def block(self, seconds: float) -> tuple[int, float]:
        """Computes distances for about so long; returns how many, and the seconds."""
        began, count = time.perf_counter(), 0
        while not count or time.perf_counter() - began < seconds:
            self._distance(*self._sets)
            count += 1
        return count, time.perf_counter() - began


class Ours(_Side):
    """Statistics streamed in float64, and the distance through factors of the covariances."""

    packages = ("pmjax", "numpy", "scipy")

    def _distance(self, a, b):
        return frechet_distance(*gaussian(a), *gaussian(b))


class SciPy(_Side):
    """`numpy.cov`, and `scipy.linalg.sqrtm` of the covariances' product, as pytorch-fid has it."""

    packages = ("numpy", "scipy")

    def _distance(self, a, b):
        (mean1, cov1), (mean2, cov2) = (
            (x.mean(0, dtype=np.float64), np.cov(x, rowvar=False)) for x in (a, b)
        )
        shift, root = mean1 - mean2, linalg.sqrtm(cov1 @ cov2)
        return float(shift @ shift + np.trace(cov1) + np.trace(cov2) - 2 * np.trace(root).real)


def random_features(size: int, dim: int, *, seed: int) -> np.ndarray:
    """Returns correlated float32 features [size, dim] that are not negative, as behind a ReLU.

    Sets of two seeds differ in their spread, too.
    """
    loads = np.random.default_rng(2).standard_normal((FACTORS, dim), np.float32)
    rng = np.random.default_rng(seed)
    common = rng.standard_normal((size, FACTORS), np.float32)
    features = rng.standard_normal((size, dim), np.float32) / 2
    features += common @ (loads * np.float32((1 + seed / 5) / FACTORS**0.5))
    return np.maximum(features, 0, out=features)
