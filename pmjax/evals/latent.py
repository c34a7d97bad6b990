"""The moments of the embedding of the training set, in inference mode."""

import numpy as np

from pmjax.evals import Context


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns how far the coordinates of the embedding are from mean 0, variance 1, uncorrelated.

    'latent/mean_abs_max', 'latent/var_min' and 'latent/var_max' are the worst coordinates';
    'latent/corr_abs_mean' is the mean |correlation| of two coordinates, a constant one being
    uncorrelated with all others (0 for one-dimensional embeddings).
    """
    z = ctx.embeddings("train").astype(np.float64)
    mean, var = z.mean(0), z.var(0)
    z = (z - mean) / np.sqrt(np.where(var > 0, var, 1))
    correlation = np.abs(z.T @ z / len(z))[~np.eye(z.shape[1], dtype=bool)]
    return {
        "latent/mean_abs_max": np.abs(mean).max(),
        "latent/var_min": var.min(),
        "latent/var_max": var.max(),
        "latent/corr_abs_mean": correlation.mean() if correlation.size else 0.0,
    }
