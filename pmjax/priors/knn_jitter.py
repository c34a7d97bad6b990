"""A control, not a model: the embeddings of the training set with tiny noise.

In every distance between distributions it does about as well as a perfect prior, and it generates
nothing new. A metric of memorization must expose it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import NearestNeighbors

from pmjax.priors.base import Array, FittedPrior


@dataclasses.dataclass(frozen=True)
class Prior(FittedPrior):
    """Training embeddings with noise of `share` of the distance to their k-th neighbor."""

    neighbour: int = 1  # k; the embedding itself does not count
    share: float = 0.02  # of the distance to that neighbor

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Returns embeddings z [N, d] and the distance of each to its k-th neighbor."""
        count = min(self.neighbour, len(z) - 1) + 1  # each is its own nearest
        centered = z - z.mean(0)  # ‖a‖² + ‖b‖² - 2ab then loses no digits
        distance, _ = NearestNeighbors(n_neighbors=count).fit(centered).kneighbors(centered)
        return {"z": np.asarray(z, np.float32), "distance": distance[:, -1].astype(np.float32)}

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws z [num, d]; the expected squared norm of the noise is (share · distance)²."""
        index_key, noise_key = jax.random.split(key)
        z, distance = jnp.asarray(params["z"]), jnp.asarray(params["distance"])
        index = jax.random.randint(index_key, (num,), 0, len(z))
        noise = jax.random.normal(noise_key, (num, z.shape[1])) / z.shape[1] ** 0.5
        return z[index] + self.share * distance[index, None] * noise
