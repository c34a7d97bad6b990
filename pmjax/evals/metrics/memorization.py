"""Whether samples are copies of training examples."""

from collections.abc import Mapping

import numpy as np
from sklearn.neighbors import NearestNeighbors

from pmjax.datasets.batches import to_float, to_uint8
from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table
from pmjax.evals.context import Context, finite
from pmjax.evals.features.base import Features

METRIC = Metric(
    Table(
        "memorization",
        "Memorization, {}",
        "Mean distance of samples from their nearest training examples, over that of test "
        "examples: about 1 for new examples, well below 1 for copies. Blur brings samples nearer: "
        "see recon.",
    ),
    Table(
        "authenticity",
        "Authenticity, {}",
        "Share of the samples that are farther from their nearest training example than that "
        "example is from its own nearest; near 0 for copies.",
        better="higher",
    ),
    extractor="efficientnet_lite0",
    least={"test": 1, "train": 2},
    limits={"num": 1},
)
AT_ONCE = 4096  # training examples held as float


def evaluate(
    ctx: Context,
    *,
    num: int = 1000,
    control: str | None = "knn_jitter",
    extractor: str | None = METRIC.extractor,
) -> dict[str, float]:
    """Returns how near `num` samples of each prior are to their nearest training examples.

    'memorization/<space>/<set>' is their mean distance over that of test examples,
    'authenticity/<space>/<set>' the share of authentic ones (Alaa et al., 2022).

    <space> is 'embedding', 'data' (for images their pixels) or, for images, 'features', those of
    `extractor` (None: without): a shifted copy is far in pixels and near in features.

    <set> is each prior; `control`, a prior that memorizes (None: without it), by default training
    embeddings with a little noise; 'test', whose ratio is 1 by definition; and, in data and
    features, 'recon', reconstructed test examples: what a perfect prior reaches through this
    decoder, whose blur brings all samples nearer.
    """
    num = min(num, len(ctx.test.data))
    chosen = ctx.subset("test", num)
    priors = dict.fromkeys([*ctx.priors, *([control] if control else [])])
    latents = {prior: ctx.latents(prior, num) for prior in priors}
    embeddings = latents | {"test": ctx.embeddings("test")[chosen]}
    data = {prior: finite("samples", ctx.model.decode(z)) for prior, z in latents.items()}
    data |= {"recon": ctx.reconstructions("test", chosen), "test": ctx.test.data[chosen]}
    values = _compare("embedding", embeddings, ctx.embeddings("train"))
    values |= _compare("data", data, ctx.train.data)
    if not (extractor and ctx.has_images):
        return values
    extract = Features(ctx, extractor, metric="memorization")
    features = {what: extract.extract_features(to_uint8(x)) for what, x in data.items()}
    train = extract.cached(
        "all training images", lambda: extract.extract_features(ctx.train.data), depends_on="data"
    )
    return values | _compare("features", features, train)


def _compare(space: str, sources: Mapping[str, np.ndarray], train: np.ndarray) -> dict[str, float]:
    values: dict[str, float] = {}
    nearest = {what: nearest_rows(x, train, 1) for what, x in sources.items()}
    scale = nearest["test"][0].mean()
    if not scale > 0:
        raise UserError(
            f"Metric 'memorization' cannot compare in the space '{space}': each test example is "
            "equal to a training example there."
        )
    for what, (distances, rows) in nearest.items():
        # The first is the example itself, or one that equals it.
        apart = nearest_rows(train[rows[:, 0]], train, 2)[0][:, 1]
        values |= {
            f"memorization/{space}/{what}": distances.mean() / scale,
            f"authenticity/{space}/{what}": float(np.mean(distances[:, 0] > apart)),
        }
    return values


def nearest_rows(x: np.ndarray, train: np.ndarray, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the `num` nearest of training examples [M, …] to each of examples [N, …].

    They are Euclidean distances [N, num], ascending, and rows [N, num] of the training set.
    """
    # ‖a‖² + ‖b‖² - 2ab loses no digits near 0.
    shift = _flat(train[:AT_ONCE]).mean(0)
    x = _flat(x) - shift
    distances, rows = np.empty((len(x), 0)), np.empty((len(x), 0), int)
    for start in range(0, len(train), AT_ONCE):
        part = _flat(train[start : start + AT_ONCE]) - shift
        search = NearestNeighbors(n_neighbors=min(num, len(part)), algorithm="brute").fit(part)
        found = search.kneighbors(x)
        distances, rows = np.hstack([distances, found[0]]), np.hstack([rows, start + found[1]])
        order = np.argsort(distances, axis=1, kind="stable")[:, :num]
        distances, rows = (np.take_along_axis(a, order, 1) for a in (distances, rows))
    return distances, rows


def _flat(x: np.ndarray) -> np.ndarray:
    return to_float(np.asarray(x)).reshape(len(x), -1)
