"""Residual convolutional nets after Mimicry (Lee and Town, 2020), in laptop size.

The blocks are Mimicry's; the nets fold `patch`×`patch` pixels into channels first, so that all
convolutions run at half the resolution or less.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from pmjax.nets.layers import Conv, depth_to_space, downsample, space_to_depth, upsample

Array = jax.Array
_GAIN = 2**0.5


class DBlock(nn.Module):
    """Discriminator block: ReLU-conv-ReLU-conv-(pool), shortcut 1×1-(pool); hidden width = in."""

    features: int
    down: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, features], or half of H and W if `down`."""
        h = Conv(x.shape[-1], gain=_GAIN)(nn.relu(x))
        h = Conv(self.features, gain=_GAIN)(nn.relu(h))
        if self.down or x.shape[-1] != self.features:
            x = Conv(self.features, kernel=1)(x)
        return downsample(h + x) if self.down else h + x


class GBlock(nn.Module):
    """Generator block: (norm)-ReLU-(up)-conv-(norm)-ReLU-conv, shortcut (up)-1×1; hidden = out."""

    features: int
    up: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, features], or twice H and W if `up`."""
        grow = upsample if self.up else lambda x: x
        h = Conv(self.features, gain=_GAIN)(grow(nn.relu(x)))
        h = Conv(self.features, gain=_GAIN)(nn.relu(h))
        if self.up or x.shape[-1] != self.features:
            # The 1×1 convolution commutes with the resampling and is cheaper before it.
            x = grow(Conv(self.features, kernel=1)(x))
        return h + x


def _dense(features: int) -> nn.Dense:
    return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform())


class _Trunk(nn.Module):
    """Image to features at a quarter (with `patch=2`) of its height and width."""

    width: int
    blocks: int
    patch: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = Conv(self.width)(space_to_depth(x, self.patch))
        x = DBlock(2 * self.width, down=True)(x)
        for _ in range(self.blocks):
            x = DBlock(2 * self.width)(x)
        return nn.relu(x)


class Encoder(nn.Module):
    """E before its BatchNorm: [N, H, W, C] to [N, latent_dim]; H and W divisible by 2·patch."""

    latent_dim: int
    width: int = 32
    critic_width: int = 16
    blocks: int = 1
    patch: int = 2

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Flattens the trunk's features into a linear layer."""
        x = _Trunk(self.width, self.blocks, self.patch)(x)
        return _dense(self.latent_dim)(x.reshape(x.shape[0], -1))


class Decoder(nn.Module):
    """G: [N, latent_dim] to images [N, H, W, C] within [-1, 1]."""

    shape: tuple[int, int, int]
    width: int = 32
    critic_width: int = 16
    blocks: int = 1
    patch: int = 2

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Mirrors the encoder."""
        height, width, channels = self.shape
        size = (height // (2 * self.patch), width // (2 * self.patch), 2 * self.width)
        x = _dense(size[0] * size[1] * size[2])(z).reshape(-1, *size)
        for _ in range(self.blocks):
            x = GBlock(2 * self.width)(x)
        x = GBlock(self.width, up=True)(x)
        x = Conv(self.patch**2 * channels)(nn.relu(x))
        return jnp.tanh(depth_to_space(x, self.patch))


class Critic(nn.Module):
    """d: [N, H, W, C] to one number an image [N]."""

    width: int = 32
    critic_width: int = 16
    blocks: int = 1
    patch: int = 2

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Flattens the trunk's features into a linear layer."""
        x = _Trunk(self.critic_width, self.blocks, self.patch)(x)
        return _dense(1)(x.reshape(x.shape[0], -1))[:, 0]
