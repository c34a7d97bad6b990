"""The simplest prior: a Gaussian with the mean and covariance of the embeddings."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pmjax.priors.base import Array, FittedPrior


@dataclasses.dataclass(frozen=True)
class Prior(FittedPrior):
    """N(mean, covariance) by maximum likelihood."""

    min_embeddings = 2

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Fits embeddings z [N, d]; N < d and constant coordinates are allowed."""
        self.require_embeddings(len(z))
        mean = z.mean(0, dtype=np.float64)
        centered = z - mean
        values, vectors = np.linalg.eigh(centered.T @ centered / len(z))
        root = vectors * np.sqrt(np.maximum(values, 0))
        return {"mean": mean.astype(np.float32), "root": root.astype(np.float32)}

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws z [num, d]."""
        noise = jax.random.normal(key, (num, len(params["mean"])))
        return jnp.asarray(params["mean"]) + noise @ jnp.asarray(params["root"]).T
