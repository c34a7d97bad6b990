"""A mixture of Gaussians: the baseline that any learned prior must beat.

Ghosh et al., From Variational to Deterministic Autoencoders (2020), fit ten full-covariance
components to the codes of a plain autoencoder.
"""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.mixture import GaussianMixture

from pmjax import errors
from pmjax.priors.base import Array, FittedPrior

log = logging.getLogger(__name__)

# scikit-learn's covariances of each type -> full matrices [K, d, d] (or broadcast to them).
_AS_FULL = {
    "full": lambda c, eye: c,
    "tied": lambda c, eye: c[None],
    "diag": lambda c, eye: c[:, :, None] * eye,
    "spherical": lambda c, eye: c[:, None, None] * eye,
}


@dataclasses.dataclass(frozen=True)
class Prior(FittedPrior):
    """A mixture of Gaussians, fitted by expectation-maximization."""

    components: int = 10  # Gaussians
    covariance: str = "full"  # or 'tied', 'diag', 'spherical', as in scikit-learn
    regularization: float = 1e-4  # times the mean variance: added to each covariance's diagonal
    max_iter: int = 100  # of expectation-maximization
    min_embeddings = 2

    def __post_init__(self):
        if self.covariance not in _AS_FULL:
            raise errors.unknown("covariance", self.covariance, _AS_FULL)

    def fit(self, z: np.ndarray, *, seed: int) -> dict[str, np.ndarray]:
        """Fits embeddings z [N, d], starting from a seeded k-means.

        There are at most as many components as different embeddings.
        """
        self.require_embeddings(len(z))
        distinct = len(np.unique(z, axis=0))
        if distinct < self.components:
            log.warning(
                f"Prior 'gmm' has {distinct} instead of {self.components} components: one for each "
                "different embedding."
            )
        center = z.mean(0, dtype=np.float64)
        centered = z - center
        scale = np.sqrt(np.square(centered).mean())  # 0 if all embeddings are equal
        mixture = GaussianMixture(
            min(self.components, distinct),
            covariance_type=self.covariance,
            reg_covar=self.regularization,
            max_iter=self.max_iter,
            random_state=seed,
        ).fit(centered / (scale or 1))
        shape = (len(mixture.weights_), z.shape[1], z.shape[1])
        covariances = _AS_FULL[self.covariance](mixture.covariances_, np.eye(z.shape[1]))
        roots = scale * np.linalg.cholesky(np.broadcast_to(covariances, shape))
        means = center + scale * mixture.means_
        arrays = {"weights": mixture.weights_, "means": means, "roots": roots}
        return {name: array.astype(np.float32) for name, array in arrays.items()}

    def sample(self, params: dict[str, Array], key: Array, num: int) -> Array:
        """Draws z [num, d]."""
        index_key, noise_key = jax.random.split(key)
        params = jax.tree.map(jnp.asarray, params)
        index = jax.random.categorical(index_key, jnp.log(params["weights"]), shape=(num,))
        noise = jax.random.normal(noise_key, (num, params["means"].shape[1]))
        # One component at a time: gathering a root for each sample would need num·d² numbers.
        z = params["means"][index]
        for component, root in enumerate(params["roots"]):
            z += jnp.where((index == component)[:, None], noise @ root.T, 0)
        return z
