"""A second VAE, on the embeddings: without excess dimensions, it can reach its prior N(0, I).

Dai and Wipf, Diagnosing and Enhancing VAE Models (2019): the decoder's variance is learned, and is
part of what is sampled. Theirs learns from draws of q(z|x), which never repeat; embeddings do, so
that its weights decay here.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.methods.base import LossValue, MethodSpec, reparameterize
from pmjax.methods.losses import gaussian_kl
from pmjax.nets.base import Net, Nets, apply
from pmjax.nets.mlp import LatentGenerator
from pmjax.priors import standardized
from pmjax.priors.base import TrainedPrior
from pmjax.training.step import TrainState

Array = jax.Array


class Decoder(nn.Module):
    """The mean of p(z|u) by a residual perceptron, and one standard deviation γ for all of it."""

    latent_dim: int
    width: int
    blocks: int
    gamma: float

    @nn.compact
    def __call__(self, u: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps u [N, k] to means [N, d] and log γ, a number."""
        mean = LatentGenerator(self.latent_dim, self.width, self.blocks, name="mean")
        start = nn.initializers.constant(math.log(self.gamma))
        return mean(u, train=train), self.param("log_gamma", start, ())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(TrainedPrior):
    """A VAE on the standardised embeddings; encoder and decoder are residual perceptrons."""

    dim: int = 0  # of its own latent u (0: the embedding's)
    width: int = 256  # of the hidden layers
    blocks: int = 2  # residual blocks in each
    gamma: float = 0.5  # at the start; from 0.3, it overfits to few embeddings
    weight_decay: float = 1e-4  # λ; without, it overfits as well, or q(u|z) collapses to N(0, I)
    b1: float = 0.9  # of Adam, in place of config.stage2.optimizer's

    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the nets 'encoder' and 'decoder', and the objective who moves both."""
        dim = self.dim or latent_dim
        encoder = LatentGenerator(2 * dim, self.width, self.blocks)
        decoder = Decoder(latent_dim, self.width, self.blocks, self.gamma)
        parts = {"encoder": Net(encoder, (latent_dim,)), "decoder": Net(decoder, (dim,))}
        return standardized.spec(parts, self.loss, latent_dim, self.b1)

    def loss(self, nets: Nets, z: Array, key: Array) -> LossValue:
        """(KL(q(u|z) ‖ N(0, I)) + ‖z - ẑ‖²/(2γ²) + d log γ) / d + λ ‖W‖²."""
        posterior = jnp.split(nets.encoder(z), 2, -1)
        mean, log_gamma = nets.decoder(reparameterize(*posterior, key))
        error = jnp.square((z - mean) * jnp.exp(-log_gamma)).mean() / 2 + log_gamma
        kl = gaussian_kl(*posterior).mean() / z.shape[-1]
        weights = jax.tree.leaves((nets.decoder.params, nets.encoder.params))
        squares = sum(jnp.square(W).sum() for W in weights if W.ndim > 1)
        return error + kl + self.weight_decay * squares, {"kl": kl, "gamma": jnp.exp(log_gamma)}

    def export(self, state: TrainState) -> dict:
        """Returns what `sample` needs: the decoder's averaged parameters, the standardisation."""
        return standardized.export(state, "decoder")

    def sample_base(self, params: dict, key: Array, num: int) -> Array:
        """Draws u [num, k]."""
        u_key, _ = jax.random.split(key)
        dim = params["decoder"]["mean"]["enter"]["kernel"].shape[0]
        return jax.random.normal(u_key, (num, dim))

    def sample(self, params: dict, key: Array, num: int) -> Array:
        """Draws [num, d] from p(z|u); with the same key, for the u that `sample_base` draws."""
        _, noise_key = jax.random.split(key)
        decoder = Decoder(len(params["mean"]), self.width, self.blocks, self.gamma)
        mean, log_gamma = apply(decoder, params["decoder"], {}, self.sample_base(params, key, num))
        noise = jax.random.normal(noise_key, mean.shape)
        return standardized.restore(params, mean + jnp.exp(log_gamma) * noise)
