"""The moments of the embedding of the training set, in inference mode."""

import numpy as np

from pmjax.evals.base import Metric, Table, Value, lower
from pmjax.evals.context import Context

METRIC = Metric(
    Table(
        "latent",
        "Latent space",
        "The coordinates of the training set's embeddings, in inference mode; the latent "
        "BatchNorm asks for mean 0 and variance 1 in each.",
        {
            "mean_abs_max": lower("largest absolute mean of a coordinate"),
            "var_min": Value("smallest variance of a coordinate"),
            "var_max": Value("largest variance of a coordinate"),
            "cov_abs_mean": lower("mean absolute covariance of two coordinates"),
            "cov_abs_max": lower("largest absolute covariance of two coordinates"),
            "corr_abs_mean": lower("mean absolute correlation of two coordinates"),
        },
    ),
    least={"train": 1},
)


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns how far the coordinates of the embedding are from mean 0, variance 1, uncorrelated.

    A constant coordinate counts as uncorrelated with all others. With a single coordinate,
    covariances and correlation are 0.
    """
    z = ctx.embeddings("train").astype(np.float64)
    mean, var = z.mean(0), z.var(0)
    covariance = np.abs((z - mean).T @ (z - mean)) / len(z)
    scale = np.sqrt(np.where(var > 0, var, 1))
    correlation = covariance / scale / scale[:, None]
    apart = ~np.eye(len(var), dtype=bool) if len(var) > 1 else np.zeros((1, 1), bool)
    return {
        "latent/mean_abs_max": np.abs(mean).max(),
        "latent/var_min": var.min(),
        "latent/var_max": var.max(),
        "latent/cov_abs_mean": covariance.mean(where=apart) if apart.any() else 0.0,
        "latent/cov_abs_max": covariance.max(where=apart, initial=0),
        "latent/corr_abs_mean": correlation.mean(where=apart) if apart.any() else 0.0,
    }
