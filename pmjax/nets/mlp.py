"""Multi-layer perceptrons: a family for points, and the nets of the latent space."""

from math import prod

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pmjax.nets.base import Critic as BaseCritic
from pmjax.nets.layers import at_least_float32, spectral_norm


class MLP(nn.Module):
    """`layers` hidden layers of `width` with ReLU, then a linear layer."""

    features: int
    width: int
    layers: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Maps [N, …] to the last hidden layer [N, width], and to [N, features]."""
        x = x.reshape(len(x), -1)
        for _ in range(self.layers):
            dense = nn.Dense(self.width, kernel_init=nn.initializers.he_normal(), dtype=self.dtype)
            x = nn.relu(dense(x))
        out = at_least_float32(nn.Dense(self.features, dtype=self.dtype)(x))
        return at_least_float32(x), out


class Encoder(nn.Module):
    """E before its BatchNorm: [N, …] to [N, latent_dim]."""

    latent_dim: int
    width: int = 400  # of the hidden layers
    layers: int = 2  # hidden layers
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Applies the perceptron."""
        return MLP(self.latent_dim, self.width, self.layers, self.dtype)(x)[1]


class Decoder(nn.Module):
    """G: [N, latent_dim] to images [N, H, W, C] within [-1, 1], or to points [N, D] anywhere."""

    shape: tuple[int, ...]
    width: int = 400
    layers: int = 2
    dtype: str = "float32"

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Applies the perceptron."""
        _, x = MLP(prod(self.shape), self.width, self.layers, self.dtype)(z)
        x = x.reshape(-1, *self.shape)
        return jnp.tanh(x) if len(self.shape) == 3 else x


class Critic(BaseCritic):
    """d: [N, …] to one number per example [N]."""

    width: int = 400
    layers: int = 2
    dtype: str = "float32"

    @nn.compact
    def features(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps examples to the last hidden layer [N, width], and to the number [N]."""
        hidden, out = MLP(1, self.width, self.layers, self.dtype)(x)
        return hidden, out[:, 0]


class LatentGenerator(nn.Module):
    """g: base draws z' [N, p] to embeddings [N, latent_dim], through residual blocks."""

    latent_dim: int
    width: int
    blocks: int

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Applies dense, `blocks` × (x + dense(relu(dense(relu(x))))), relu, dense."""
        x = nn.Dense(self.width, name="enter")(z)
        for _ in range(self.blocks):
            h = nn.Dense(self.width, kernel_init=nn.initializers.he_normal())(nn.relu(x))
            x = x + nn.Dense(self.width)(nn.relu(h))
        return nn.Dense(self.latent_dim, name="leave")(nn.relu(x))


class LatentCritic(nn.Module):
    """D: embeddings [N, d] to one number each [N]; optional spectral norm on every layer."""

    width: int
    blocks: int
    spectral_norm: bool

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Applies dense, residual blocks as in g, relu, dense."""

        def dense(features: int, x: Array) -> Array:
            layer = nn.Dense(features)
            return spectral_norm(layer, x, train=train) if self.spectral_norm else layer(x)

        x = dense(self.width, z)
        for _ in range(self.blocks):
            h = dense(self.width, nn.relu(x))
            x = x + dense(self.width, nn.relu(h))
        return dense(1, nn.relu(x))[:, 0]
