"""Regularized autoencoder: deterministic, with a mixture of Gaussians fitted to its embeddings.

Ghosh, Sajjadi, Vergari, Black, Schölkopf: From Variational to Deterministic Autoencoders (2020):
reconstruction + β‖z‖²/2 + λ·L_REG, where L_REG is one of three ways to make the decoder smooth.
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from jax import Array

from pmjax import errors
from pmjax.distributed.collectives import sample_batch
from pmjax.methods.base import LossValue, MethodSpec, NetBuilder, Shared, autoencode, joint_spec
from pmjax.methods.losses import squared_error
from pmjax.nets.base import Nets


class SpectrallyNormalized(nn.Module):
    """G with every weight matrix divided by its largest singular value (Miyato et al. 2018)."""

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

    def __post_init__(self) -> None:
        errors.require_known("regularizer", self.regularizer, REGULARIZERS)

    def spec(self, build: NetBuilder) -> MethodSpec:
        """Returns E and G with one objective."""
        wrap = SpectrallyNormalized if self.regularizer == "spectral_norm" else None
        return joint_spec(build.encoder(), build.decoder(wrap), autoencode, self.autoencoder_loss)

    def autoencoder_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """‖x - x̂‖² + β ‖z‖²/2 + λ L_REG, L_REG = ‖θ_G‖² ('l2') or ‖∂G/∂z‖²/2 (the penalty)."""
        recon, norm = squared_error(s.x, s.x_hat), jnp.mean(jnp.sum(jnp.square(s.z), -1)) / 2
        loss, metrics = recon + self.embedding_weight * norm, {"recon": recon, "norm": norm}
        if self.regularizer == "l2":
            loss += self.l2_weight * optax.tree.norm(nets.G.params, squared=True)
        if self.regularizer == "gradient_penalty":
            metrics["jacobian"] = jacobian(nets, s, key)
            loss += self.gradient_weight * metrics["jacobian"] / 2
        return loss, metrics


def jacobian(nets: Nets, s: Shared, key: Array) -> Array:
    """E‖∂G/∂z‖² over the number of values, by one random projection for each example."""
    x_hat, pull_back = jax.vjp(lambda z: nets.G(z, update_stats=False), s.z)
    projection = sample_batch(jax.random.normal, key, x_hat.shape)
    return jnp.sum(jnp.square(pull_back(projection)[0])) / x_hat.size
