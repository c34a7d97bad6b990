"""The Fréchet distance from means and covariances, for the tests of this room."""

from pmjax.evals import frechet
from pmjax.evals.features.base import moments


def gaussian(features):
    """Returns mean and unbiased covariance of features."""
    return moments([features])[:2]


def frechet_distance(mean1, cov1, mean2, cov2):
    """Returns the distance of two Gaussians."""
    a, b = ((mean1, cov1, 0), (mean2, cov2, 0))
    return frechet.frechet_distance(*(frechet.Sample.of_moments(*each) for each in (a, b)))
