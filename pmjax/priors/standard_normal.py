"""The prior that variational autoencoders impose: N(0, I)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from pmjax.priors.base import Array, FittedPrior


@dataclasses.dataclass(frozen=True)
class Prior(FittedPrior):
    """N(0, I), whatever the embeddings are."""

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Returns the mean 0; only the dimension of embeddings z [N, d] matters."""
        return {"mean": np.zeros(z.shape[1], np.float32)}

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws z [num, d]."""
        mean = jnp.asarray(params["mean"])
        return mean + jax.random.normal(key, (num, len(mean)))
