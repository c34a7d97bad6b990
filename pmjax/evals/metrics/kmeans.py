"""Whether the classes are clusters of the embedding: ACAI's clustering task."""

import numpy as np
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans
from sklearn.metrics import confusion_matrix
from threadpoolctl import threadpool_limits

from pmjax.evals.base import Metric, Table, Value, higher
from pmjax.evals.context import Context
from pmjax.evals.labels import classes, codes

METRIC = Metric(
    Table(
        "kmeans",
        "k-means",
        "Test accuracy of clusters of the embeddings, and of as many principal components, each "
        "cluster standing for one class.",
        {
            "accuracy": higher("of the embeddings"),
            "pca": Value("of as many principal components of the data"),
        },
    ),
    least={"test": 1, "train": 2},
    needs_classes=True,
    limits={"restarts": 1, "iterations": 1},
)


def evaluate(ctx: Context, *, restarts: int = 20, iterations: int = 1000) -> dict[str, float]:
    """Returns accuracies on the test set of k-means with as many clusters as there are classes.

    Berthelot et al., 2019: fitted to the training set's embeddings, `whitened`, from random
    examples; the best of `restarts` (theirs: 1000) counts. Each cluster stands for one class, as
    `clustering_accuracy` chooses.
    """
    labels, test_labels = classes(ctx, "kmeans")
    values = {}
    for what, (train, test) in codes(ctx).items():
        train, test = whitened(train, test)
        seed = ctx.derived_seed("kmeans")
        clusters = KMeans(
            labels.max() + 1, init="random", n_init=restarts, max_iter=iterations, random_state=seed
        )
        with threadpool_limits(1):  # more threads are slower
            found = clusters.fit(train).predict(test)
        values[f"kmeans/{what}"] = clustering_accuracy(found, test_labels)
    return values


def whitened(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns codes of unit variance and no correlation, by the training set's mean and SVD.

    Directions in which the training set does not vary are dropped.
    """
    mean = train.mean(0, dtype=np.float64)
    _, scale, directions = np.linalg.svd(train - mean, full_matrices=False)
    varying = scale > scale.max(initial=0) * np.finfo(np.float32).eps * len(train)
    matrix = directions[varying].T / scale[varying] * len(train) ** 0.5
    return (train - mean) @ matrix, (test - mean) @ matrix


def clustering_accuracy(clusters: np.ndarray, labels: np.ndarray) -> float:
    """Returns the largest share of examples that a one-to-one naming of clusters names right."""
    table = confusion_matrix(labels, clusters)
    return float(table[linear_sum_assignment(table, maximize=True)].sum() / len(labels))
