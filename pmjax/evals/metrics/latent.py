"""The moments of the embedding of the training set, in inference mode."""

import numpy as np

from pmjax.evals.context import Context


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns how far the coordinates of the embedding are from mean 0, variance 1, uncorrelated.

    'latent/mean_abs_max', 'latent/var_min' and 'latent/var_max' are the worst coordinates';
    'latent/cov_abs_mean' and 'latent/cov_abs_max' are of the covariances of two coordinates, and
    'latent/corr_abs_mean' of their correlations, a constant coordinate being uncorrelated with all
    others. Of one coordinate alone, all three are 0.
    """
    z = ctx.embeddings("train").astype(np.float64)
    mean, var = z.mean(0), z.var(0)
    covariance = np.abs((z - mean).T @ (z - mean)) / len(z)
    scale = np.sqrt(np.where(var > 0, var, 1))
    apart = ~np.eye(len(var), dtype=bool) if len(var) > 1 else np.zeros((1, 1), bool)
    return {
        "latent/mean_abs_max": np.abs(mean).max(),
        "latent/var_min": var.min(),
        "latent/var_max": var.max(),
        "latent/cov_abs_mean": covariance.mean(where=apart) if apart.any() else 0.0,
        "latent/cov_abs_max": covariance.max(where=apart, initial=0),
        "latent/corr_abs_mean": (covariance / scale / scale[:, None]).mean(where=apart)
        if apart.any()
        else 0.0,
    }
