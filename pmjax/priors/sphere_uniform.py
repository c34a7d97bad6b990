"""The prior of methods whose embeddings lie on the sphere: uniform there."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

Array = jax.Array


def sphere(key: Array, shape: tuple[int, ...]) -> Array:
    """Draws from the uniform distribution on the unit sphere of the last axis."""
    z = jax.random.normal(key, shape)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class Prior:
    """The uniform distribution on the sphere with norm `radius`, whatever the embeddings are."""

    radius: float = 1.0

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Takes from embeddings z [N, d] no more than their size."""
        return {"centre": np.zeros(z.shape[1], np.float32)}

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws [num, d]."""
        centre = jnp.asarray(params["centre"])
        return centre + self.radius * sphere(key, (num, len(centre)))
