"""The Fréchet distance between two Gaussians, in float64 (Dowson & Landau, 1982)."""

import numpy as np
from scipy.linalg.lapack import dpstrf

from pmjax.errors import UserError


def gaussian(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns mean [D] and unbiased covariance [D, D] of features [N, D], in float64."""
    if len(features) < 2:
        raise UserError(f"A Fréchet distance needs two examples a set, got {len(features)}.")
    features = np.asarray(features, np.float64)
    return features.mean(0), np.cov(features, rowvar=False).reshape(2 * features.shape[1:])


def frechet_distance(
    mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray
) -> float:
    """Returns ‖m₁ - m₂‖² + tr(S₁ + S₂ - 2 (S₁^½ S₂ S₁^½)^½), the squared distance.

    With any factors Sᵢ = Fᵢᵀ Fᵢ, the trace of the square root is the sum of the singular values
    of F₁ F₂ᵀ. Pivoted Cholesky factors have as many rows as the covariance has rank, so fewer
    examples than dimensions make it faster, not inexact, and no root is taken of rounding errors.
    """
    root = np.linalg.svd(_factor(cov1) @ _factor(cov2).T, compute_uv=False).sum()
    distance = np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * root
    return max(float(distance), 0.0)


def _factor(cov):
    """Returns F [rank, D] with Fᵀ F = cov."""
    tolerance = len(cov) * np.finfo(np.float64).eps * max(cov.diagonal().max(), 0)
    factor, pivots, rank, _ = dpstrf(cov, tol=tolerance)
    factor = np.triu(factor)[:rank]
    return factor[:, np.argsort(pivots)]
