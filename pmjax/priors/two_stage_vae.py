"""A second VAE, on the embeddings: without excess dimensions, it can reach its prior N(0, I).

Dai and Wipf, Diagnosing and Enhancing VAE Models (2019). The decoder's variance is learned, and
samples include it. Theirs is trained on draws of q(z|x), which never repeat. Embeddings repeat;
hence the weight decay.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.methods.base import LossValue, reparameterize
from pmjax.methods.losses import gaussian_kl
from pmjax.nets.base import Net, Nets, apply
from pmjax.nets.mlp import LatentGenerator
from pmjax.priors.base import Array, Tree
from pmjax.priors.standardized import StandardizedPrior


class Decoder(nn.Module):
    """p(z|u): its mean by a residual perceptron, and one standard deviation γ for all of it."""

    latent_dim: int
    width: int
    blocks: int
    gamma: float

    @nn.compact
    def __call__(self, u: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps u [N, k] to means [N, d] and log γ, a scalar."""
        mean = LatentGenerator(self.latent_dim, self.width, self.blocks, name="mean")
        initial = nn.initializers.constant(math.log(self.gamma))
        return mean(u, train=train), self.param("log_gamma", initial, ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(StandardizedPrior):
    """A VAE on the standardized embeddings; encoder and decoder are residual perceptrons."""

    dim: int = 0  # of its latent u (0: the embedding's)
    width: int = 256  # of the hidden layers
    blocks: int = 2  # residual blocks in each
    gamma: float = 0.5  # initial value; smaller ones overfit to few embeddings
    weight_decay: float = 1e-4  # λ; with 0 it overfits too, or q(u|z) collapses to N(0, I)
    b1: float = 0.9  # of Adam, instead of config.stage2.optimizer.b1
    sampled = "decoder"

    def nets(self, latent_dim: int) -> dict[str, Net]:
        """Returns the nets 'encoder' and 'decoder'."""
        dim = self.dim or latent_dim
        return {
            "encoder": Net(LatentGenerator(2 * dim, self.width, self.blocks), (latent_dim,)),
            "decoder": Net(self._decoder(latent_dim), (dim,)),
        }

    def loss(self, nets: Nets, y: Array, key: Array) -> LossValue:
        """(KL(q(u|y) ‖ N(0, I)) + ‖y - ŷ‖²/(2γ²) + d log γ) / d + λ ‖W‖²."""
        u_mean, u_log_variance = jnp.split(nets.encoder(y), 2, -1)
        u = reparameterize(u_mean, u_log_variance, key)
        mean, log_gamma = nets.decoder(u)
        error = jnp.square((y - mean) * jnp.exp(-log_gamma)).mean() / 2 + log_gamma
        kl = gaussian_kl(u_mean, u_log_variance).mean() / y.shape[-1]
        weights = jax.tree.leaves((nets.decoder.params, nets.encoder.params))
        squares = sum(jnp.square(W).sum() for W in weights if W.ndim > 1)
        total = error + kl + self.weight_decay * squares
        return total, {"kl": kl, "gamma": jnp.exp(log_gamma)}

    def _decoder(self, latent_dim: int) -> Decoder:
        return Decoder(latent_dim, self.width, self.blocks, self.gamma)

    def sample_base(self, params: Tree, key: Array, num: int) -> Array:
        """Draws u [num, k]."""
        u_key, _ = jax.random.split(key)
        dim = params["decoder"]["mean"]["enter"]["kernel"].shape[0]
        return jax.random.normal(u_key, (num, dim))

    def sample(self, params: Tree, key: Array, num: int) -> Array:
        """Draws z [num, d] from p(z|u), with u as `sample_base` draws it for this key."""
        _, noise_key = jax.random.split(key)
        u = self.sample_base(params, key, num)
        mean, log_gamma = apply(self._decoder(len(params["mean"])), params["decoder"], {}, u)
        noise = jax.random.normal(noise_key, mean.shape)
        return self.restore(params, mean + jnp.exp(log_gamma) * noise)
