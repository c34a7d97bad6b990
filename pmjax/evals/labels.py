"""Classes of the examples, and the codes that metrics of a labeled embedding compare."""

import numpy as np
from sklearn.decomposition import PCA

from pmjax.datasets.batches import to_float
from pmjax.evals.context import OMIT_HINT, Context, Unfit


def classes(ctx: Context, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the classes int [N] of the training and of the test set, numbered from 0.

    Raises:
        Unfit: if the data set has none, or if the training set lacks one or has only one.
    """
    train, test = (_integers(split.labels) for split in (ctx.train, ctx.test))
    if train is None or test is None:
        raise Unfit(
            f"Metric '{metric}' needs a class for every example, and this data set has none. "
            + OMIT_HINT
        )
    known, numbers = np.unique(np.concatenate([train, test]), return_inverse=True)
    train, test = np.split(numbers, [len(train)])
    if len(known) < 2 or len(np.unique(train)) < len(known):
        raise Unfit(
            f"Metric '{metric}' needs at least two classes in the training set, and no other "
            f"ones in the test set; they have {len(np.unique(train))} and {len(known)} in all."
        )
    return train, test


def _integers(labels: np.ndarray | None) -> np.ndarray | None:
    return labels if labels is not None and np.issubdtype(labels.dtype, np.integer) else None


def codes(ctx: Context) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {name of the value: codes of the training and of the test set}.

    Those of 'accuracy' are the embeddings, those of 'pca' as many principal components of the data
    (or all).
    """

    def components() -> tuple[np.ndarray, np.ndarray]:
        train, test = (to_float(s.data).reshape(len(s.data), -1) for s in (ctx.train, ctx.test))
        num = min(ctx.embeddings("train").shape[1], *train.shape)
        pca = PCA(num, random_state=ctx.derived_seed("pca")).fit(train)
        return pca.transform(train), pca.transform(test)

    return {
        "accuracy": (ctx.embeddings("train"), ctx.embeddings("test")),
        "pca": ctx.cached("principal components", components, depends_on="data"),
    }
