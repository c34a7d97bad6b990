"""Whether every class appears among the samples."""

import numpy as np
from sklearn.svm import SVC

from pmjax.errors import UserError
from pmjax.evals.context import Context
from pmjax.evals.features.base import features_of
from pmjax.evals.labels import classes

EXTRACTOR = "efficientnet_lite0"
OWN_PRIOR = True


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns the smallest and largest share of a class among the samples of the run's own prior.

    A support vector classifier on EfficientNet-Lite0 features is fitted on `num_samples` training
    images (or all); 'classes/accuracy' is its accuracy on the test set. 'classes/share_min' and
    'classes/share_max' are shares of the samples that it gives to a class of the training set.
    """
    ctx.require_images("classes")
    train, test = classes(ctx, "classes")
    labels = train[ctx.subset("train")]
    if len(np.unique(labels)) < 2:
        raise UserError(
            f"Metric 'classes': all {len(labels)} training images that it takes are of one class; "
            "raise --config.eval.num_samples."
        )
    features = {
        source: features_of(ctx, EXTRACTOR, source, resolution=None)
        for source in ("train", "test", ctx.own_prior)
    }
    classifier = SVC(C=10).fit(features["train"], labels)
    predicted = classifier.predict(features[ctx.own_prior])
    shares = [np.mean(predicted == label) for label in np.unique(train)]
    return {
        "classes/share_min": min(shares),
        "classes/share_max": max(shares),
        "classes/accuracy": classifier.score(features["test"], test),
    }
