"""A control, not a model: the training set's own embeddings with tiny noise.

It reaches about what a perfect prior does in every distance between distributions, and makes
nothing new: whatever is meant to expose memorising must expose it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.neighbors import NearestNeighbors

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class Prior:
    """Training embeddings with noise of `share` of the distance to their k-th neighbour."""

    neighbour: int = 1  # k; the embedding itself is not counted
    share: float = 0.02

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Keeps embeddings z [N, d], and how far the k-th neighbour of each is."""
        count = min(self.neighbour, len(z) - 1) + 1  # each is its own nearest
        distance, _ = NearestNeighbors(n_neighbors=count).fit(z).kneighbors(z)
        return {"z": np.asarray(z, np.float32), "distance": distance[:, -1].astype(np.float32)}

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws [num, d]; the noise's expected squared norm is (share · distance)²."""
        which_key, noise_key = jax.random.split(key)
        z, distance = jnp.asarray(params["z"]), jnp.asarray(params["distance"])
        which = jax.random.randint(which_key, (num,), 0, len(z))
        noise = jax.random.normal(noise_key, (num, z.shape[1])) / z.shape[1] ** 0.5
        return z[which] + self.share * distance[which, None] * noise
