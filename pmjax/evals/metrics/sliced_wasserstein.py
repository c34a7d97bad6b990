"""The sliced 2-Wasserstein distance between samples and test examples, of any dimension."""

import numpy as np

from pmjax.datasets.batches import to_float
from pmjax.evals.base import Metric, Table
from pmjax.evals.context import CHUNK, Context

METRIC = Metric(
    Table(
        "sliced_w2",
        "Sliced 2-Wasserstein distance",
        "The distance between the projections of generated and of test examples, averaged over "
        "random directions; lower is better.",
        better="lower",
        bars=True,
    ),
    limits={"projections": 1},
)


def evaluate(ctx: Context, *, projections: int = 500) -> dict[str, float]:
    """Returns the distances from the test set, between equally many examples of each.

    'sliced_w2/<prior>' is that of `num_samples` samples, or as many as there are test examples, and
    'sliced_w2/floor' that of training examples, if there are any. Images are compared by their
    pixels in [-1, 1].
    """
    num = min(ctx.num_samples, len(ctx.test.data))
    if ctx.has("train"):
        num = min(num, len(ctx.train.data))
    sources = {prior: ctx.samples(prior)[:num] for prior in ctx.priors}
    if ctx.has("train"):
        sources["floor"] = ctx.train.data[ctx.subset("train", num)]
    test = ctx.test.data[ctx.subset("test", num)]
    seed = ctx.derived_seed("directions")
    return {
        f"sliced_w2/{what}": sliced_wasserstein2(x, test, projections=projections, seed=seed)
        for what, x in sources.items()
    }


def sliced_wasserstein2(a: np.ndarray, b: np.ndarray, *, projections: int, seed: int) -> float:
    """Returns (mean over directions u of W₂²(⟨a, u⟩, ⟨b, u⟩))^½ of two sets [N, …] of one size.

    Bonneel et al., 2015; random unit vectors u. A shift by s makes it ‖s‖ / √D on average.
    """
    directions = np.random.default_rng(seed).normal(size=(projections, a[0].size))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    a, b = (np.sort(_project(x, directions.T.astype(np.float32)), axis=0) for x in (a, b))
    return float(np.sqrt(np.mean((a - b) ** 2)))


def _project(x: np.ndarray, directions: np.ndarray) -> np.ndarray:
    chunks = (x[i : i + CHUNK] for i in range(0, len(x), CHUNK))
    return np.concatenate([to_float(part).reshape(len(part), -1) @ directions for part in chunks])
