"""The energy distance between a prior's latents and embeddings of test examples."""

from functools import partial

import numpy as np
from scipy.spatial.distance import pdist, squareform

from pmjax.evals.base import Metric, Table
from pmjax.evals.context import Context
from pmjax.evals.two_sample import two_sample_tests

METRIC = Metric(
    Table(
        "energy",
        "Energy distance of latents",
        "Between the latents of a prior and the embeddings of test examples; lower is better, and "
        "'train' is what real ones reach.",
        better="lower",
    ),
    Table(
        "energy_p",
        "p-values of the energy distances",
        "Of the permutation test that both are draws of one distribution; a small one says that "
        "they differ.",
        better="higher",
    ),
    least={"test": 2, "train": 2},
    limits={"num": 2, "permutations": 1},
)
AT_ONCE = 500  # permutations


def evaluate(ctx: Context, *, num: int = 1000, permutations: int = 499) -> dict[str, float]:
    """Returns 'energy/<set>' and 'energy_p/<set>', up to `num` examples each: `two_sample_tests`.

    A large p says that this many latents do not show a difference.
    """
    return two_sample_tests(ctx, "energy", num, partial(two_sample, permutations=permutations))


def two_sample(
    a: np.ndarray, b: np.ndarray, *, permutations: int, seed: int
) -> tuple[float, float]:
    """Returns 2 E‖a - b‖ - E‖a - a'‖ - E‖b - b'‖ ≥ 0 of a [N, d] and b [M, d], and its p-value.

    Székely & Rizzo, 2004, with means over all pairs, including those of an example with itself. The
    p-value is (1 + the number of permutations of the pooled examples that are as far apart) /
    (1 + the number of permutations).
    """
    distances = squareform(pdist(np.concatenate([a, b]).astype(np.float64)))
    weights = np.repeat([1 / len(a), -1 / len(b)], [len(a), len(b)])
    rng = np.random.default_rng(seed)
    energy, further = -weights @ distances @ weights, 0
    for start in range(0, permutations, AT_ONCE):
        rows = np.tile(weights, (min(AT_ONCE, permutations - start), 1))
        rows = rng.permuted(rows, axis=1)
        permuted = -np.einsum("pi,pi->p", rows @ distances, rows)
        further += np.sum(permuted >= energy - 1e-12 * distances.max())
    return float(max(energy, 0)), float((1 + further) / (1 + permutations))
