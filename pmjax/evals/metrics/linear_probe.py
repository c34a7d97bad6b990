"""Whether one layer can separate the classes by their embeddings: ACAI's classification task."""

import warnings

from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pmjax.evals.base import Metric, Table, Value, higher
from pmjax.evals.context import Context
from pmjax.evals.labels import classes, codes

METRIC = Metric(
    Table(
        "linear_probe",
        "Linear probe",
        "Test accuracy of a linear classifier on the embeddings, and on as many principal "
        "components.",
        {
            "accuracy": higher("of the embeddings"),
            "pca": Value("of as many principal components of the data"),
        },
    ),
    least={"test": 1, "train": 2},
    needs_classes=True,
    limits={"c": 0.0, "iterations": 1},
)


def evaluate(ctx: Context, *, c: float = 1.0, iterations: int = 1000) -> dict[str, float]:
    """Returns accuracies on the test set of softmax regression, fitted to the training set.

    Berthelot et al., 2019, train the layer along with the autoencoder; here it is fitted
    afterwards, to standardized embeddings, with scikit-learn's penalty 1/c.
    """
    labels, test_labels = classes(ctx, "linear_probe")
    values = {}
    for what, (train, test) in codes(ctx).items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=iterations))
        with threadpool_limits(1), warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its iterations are an argument
            probe.fit(train, labels)
        values[f"linear_probe/{what}"] = probe.score(test, test_labels)
    return values
