"""Whether a classifier can tell a prior's latents from embeddings of test examples."""

import warnings
from functools import partial

import numpy as np
from scipy.stats import hypergeom
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from pmjax.errors import require_known
from pmjax.evals.base import Metric, Table, option
from pmjax.evals.context import Context
from pmjax.evals.two_sample import two_sample_tests

CLASSIFIERS = {  # name: (number of training examples, seed) -> classifier
    "mlp": lambda n, seed: MLPClassifier((20,), max_iter=100, random_state=seed),
    "knn": lambda n, seed: KNeighborsClassifier(int(n**0.5)),
    "logistic": lambda n, seed: LogisticRegression(max_iter=1000),
}

METRIC = Metric(
    Table(
        "c2st",
        "Classifier two-sample test of latents",
        "Accuracy of a classifier that separates latents of a prior from embeddings of test "
        "examples: 0.5 is perfect.",
        better="lower",
    ),
    Table(
        "c2st_p",
        "p-values of the classifier two-sample test",
        "Under the null hypothesis that the classifier guesses; a small one says that latents and "
        "embeddings differ.",
        better="higher",
    ),
    least={"test": 4, "train": 4},
    limits={"num": 4},
    check=lambda args: require_known(
        f"classifier ({option('c2st', 'classifier')})", args["classifier"], CLASSIFIERS
    ),
)


def evaluate(ctx: Context, *, num: int = 1000, classifier: str = "mlp") -> dict[str, float]:
    """Returns 'c2st/<set>' and 'c2st_p/<set>', up to `num` examples each: `two_sample_tests`."""
    return two_sample_tests(ctx, "c2st", num, partial(two_sample, classifier=classifier))


def two_sample(a: np.ndarray, b: np.ndarray, *, classifier: str, seed: int) -> tuple[float, float]:
    """Returns the accuracy of a classifier of a [N, d] and b [M, d] on held-out halves, and p.

    Lopez-Paz & Oquab, 2017: it is fitted to a random half of each, standardized; 'mlp' has 20
    hidden units and 100 epochs, 'knn' has k = √n. The p-value is exact (Fisher's test): if the two
    are alike, the number of correctly classified examples of a is hypergeometric.
    """
    rng = np.random.default_rng(seed)
    a, b = rng.permutation(a), rng.permutation(b)
    x, x_test = np.concatenate([a[::2], b[::2]]), np.concatenate([a[1::2], b[1::2]])
    is_a, is_a_test = (np.arange(len(n)) < len(m) for n, m in ((x, a[::2]), (x_test, a[1::2])))
    model = make_pipeline(StandardScaler(), CLASSIFIERS[classifier](len(x), seed))
    with threadpool_limits(1), warnings.catch_warnings():  # more threads are slower
        warnings.simplefilter("ignore", ConvergenceWarning)  # 100 epochs are the definition
        called_a = model.fit(x, is_a).predict(x_test)
    right = np.sum(called_a & is_a_test)
    p = hypergeom.sf(right - 1, len(x_test), is_a_test.sum(), called_a.sum())
    return float(np.mean(called_a == is_a_test)), float(p)
