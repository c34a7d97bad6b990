"""Whether every class appears among the samples."""

import numpy as np
from sklearn.svm import SVC

from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, Value, higher
from pmjax.evals.context import Context
from pmjax.evals.features.base import Features
from pmjax.evals.labels import classes

METRIC = Metric(
    Table(
        "classes",
        "Classes among the samples",
        "Shares of the samples that a classifier fitted to real images assigns to a class; near 0 "
        "means that the class is missing.",
        {
            "share_min": higher("of the rarest class"),
            "share_max": Value("of the most frequent class"),
            "accuracy": Value("of the classifier on the test set: how far to trust it"),
        },
    ),
    needs_own_prior=True,
    extractor="efficientnet_lite0",
    least={"test": 1, "train": 2, "samples": 2},
    needs_classes=True,
)


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns the smallest and largest share of a class among the samples of the run's own prior.

    A support vector classifier on EfficientNet-Lite0 features, fitted to `num_samples` training
    images (or all), assigns the samples to classes; 'classes/accuracy' is that on the test set.
    """
    ctx.require_images("classes")
    train, test = classes(ctx, "classes")
    labels = train[ctx.subset("train")]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"Metric 'classes': all {len(labels)} training images that it uses are of one class; "
            "raise --config.eval.num_samples."
        )
    extractor = Features(ctx, METRIC.extractor, metric="classes")
    features = {source: extractor.of(source) for source in ("train", "test", ctx.own_prior)}
    classifier = SVC(C=10).fit(features["train"], labels)
    predicted = classifier.predict(features[ctx.own_prior])
    shares = [np.mean(predicted == label) for label in np.unique(train)]
    return {
        "classes/share_min": min(shares),
        "classes/share_max": max(shares),
        "classes/accuracy": classifier.score(features["test"], test),
    }
