"""Regularized autoencoder: a deterministic rival of the VAE, with a mixture fitted to its codes.

Ghosh, Sajjadi, Vergari, Black, Schölkopf: From Variational to Deterministic Autoencoders (2020):
reconstruction + β‖z‖²/2 + λ·(one of three ways to keep the decoder smooth).
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, autoencode
from pmjax.methods.losses import squared_error
from pmjax.nets import base as nets

Array = jax.Array


class SpectrallyNormalized(nn.Module):
    """G with every weight matrix over its largest singular value (Miyato et al. 2018)."""

    decoder: nn.Module

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to examples [N, …]."""
        net = nn.SpectralNorm(self.decoder, collection_name="spectral")
        return net(z, update_stats=train, train=train)


REGULARIZERS = ("l2", "gradient_penalty", "spectral_norm", "none")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """Hyper-parameters; ‖x - x̂‖² is the mean over an example's values."""

    regularizer: str = "l2"  # of the decoder; or 'gradient_penalty', 'spectral_norm', 'none'
    embedding_weight: float = 1e-4  # β of ‖z‖²/2, summed over latent coordinates
    l2_weight: float = 1e-7  # λ of ‖θ_G‖², summed over all parameters
    gradient_weight: float = 1e-3  # λ of ‖∂G/∂z‖²/2, over the number of values that G returns

    prior = "gmm"

    def __post_init__(self):
        if self.regularizer not in REGULARIZERS:
            raise errors.unknown("regularizer", self.regularizer, REGULARIZERS)

    def game(self, plan: NetBuilder) -> MethodSpec:
        """Returns the nets E and G, and the objective who moves both."""
        E, (decoder, latent) = plan.encoder(batch_norm=False), plan.decoder()
        if self.regularizer == "spectral_norm":
            decoder = SpectrallyNormalized(decoder)
        G = decoder, latent

        def jacobian(params, stats, z, key):
            """E‖∂G/∂z‖² over the number of values, by one random projection for each example."""
            x_hat, pull_back = jax.vjp(
                lambda z: nets.apply(G[0], params["G"], stats["G"], z, train=True), z
            )
            projection = collectives.sample_batch(jax.random.normal, key, x_hat.shape, plan.axis)
            return jnp.sum(jnp.square(pull_back(projection)[0])) / x_hat.size

        def autoencoder_loss(params, stats, shared, key):
            """‖x - x̂‖² + β ‖z‖²/2 + λ L_REG(G)."""
            recon = squared_error(shared["x"], shared["x_hat"])
            norm = jnp.mean(jnp.sum(jnp.square(shared["z"]), -1)) / 2
            loss, metrics = recon + self.embedding_weight * norm, {"recon": recon, "norm": norm}
            if self.regularizer == "l2":
                loss += self.l2_weight * optax.tree.norm(params["G"], squared=True)
            if self.regularizer == "gradient_penalty":
                metrics["jacobian"] = jacobian(params, stats, shared["z"], key)
                loss += self.gradient_weight * metrics["jacobian"] / 2
            return loss, (metrics, stats)

        autoencoder = Objective("autoencoder", ("E", "G"), autoencoder_loss, plan.optimizer)
        return MethodSpec({"E": E, "G": G}, autoencode(E[0], G[0]), ("E", "G"), (autoencoder,))
