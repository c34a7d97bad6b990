"""The prior of methods whose embeddings lie on a sphere: the uniform distribution on it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pmjax.priors.base import Array, FittedPrior


def sphere(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws from the uniform distribution on the unit sphere of the last axis."""
    z = jax.random.normal(key, shape)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Prior(FittedPrior):
    """The uniform distribution on the sphere of norm `radius`, whatever the embeddings are."""

    radius: float = 1.0  # of the sphere

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Returns the center 0; only the dimension of embeddings z [N, d] matters."""
        return {"centre": np.zeros(z.shape[1], np.float32)}  # spelled as in the files of priors

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws z [num, d]."""
        center = jnp.asarray(params["centre"])
        return center + self.radius * sphere(key, (num, len(center)))
