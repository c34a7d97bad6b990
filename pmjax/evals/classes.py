"""Whether every class appears among the samples."""

import numpy as np
from sklearn.svm import SVC

from pmjax.errors import UserError
from pmjax.evals import Context
from pmjax.evals._features import features_of


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns the smallest and largest share of a class among the samples of the run's own prior.

    A support vector classifier on EfficientNet-Lite0 features is fitted on `num_samples` training
    images (or all); 'classes/accuracy' is its accuracy on the test set. 'classes/share_min' and
    'classes/share_max' are shares of the samples that it gives to a class of the training set.
    """
    ctx.require_images("classes")
    if any(
        split.labels is None or not np.issubdtype(split.labels.dtype, np.integer)
        for split in (ctx.train, ctx.test)
    ):
        raise UserError(
            "Metric 'classes' needs a class for every image, and this data set has none. "
            "Leave it out of --config.eval.metrics."
        )
    labels = ctx.train.labels[ctx.subset("train")]
    if len(np.unique(labels)) < 2:
        raise UserError("Metric 'classes' needs at least two classes in the training set.")
    features = {
        source: features_of(ctx, "efficientnet_lite0", source, resolution=None)
        for source in ("train", "test", ctx.own_prior)
    }
    classifier = SVC(C=10).fit(features["train"], labels)
    predicted = classifier.predict(features[ctx.own_prior])
    shares = [np.mean(predicted == label) for label in np.unique(ctx.train.labels)]
    return {
        "classes/share_min": min(shares),
        "classes/share_max": max(shares),
        "classes/accuracy": classifier.score(features["test"], ctx.test.labels),
    }
