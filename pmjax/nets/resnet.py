"""Residual convolutional nets after Mimicry (Lee and Town 2020), in laptop size.

The blocks are Mimicry's, but for the shortcut of `DBlock`: it receives x, as in Miyato et al.
(2018), with which the numbers of the small configs were measured. Mimicry's, as in `nets.mimicry`,
receives relu(x). The nets first fold `patch`×`patch` pixels into channels, so that all convolutions
run at half the resolution or less.
"""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pmjax.distributed.collectives import batch_axis
from pmjax.nets import layers
from pmjax.nets.base import Critic as BaseCritic

_GAIN = 2**0.5  # of the initial weights of a convolution after a ReLU, which halves the variance


class DBlock(nn.Module):
    """Discriminator block: ReLU-conv-ReLU-conv-(pool), shortcut 1×1-(pool); hidden width = in.

    The first block of a net is `optimized`: no first ReLU, and hidden width = out. With
    `relu_shortcut`, the shortcut of the others receives relu(x), as after Mimicry's in-place ReLU.
    """

    features: int
    down: bool = False
    optimized: bool = False
    relu_shortcut: bool = False
    spectral_norm: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: layers.Batches, *, train: bool) -> layers.Batches:
        """Maps [N, H, W, C] to [N, H, W, features], or half of H and W if `down`."""

        def conv(x: layers.Batches, features: int, **args: Any) -> layers.Batches:
            layer = layers.Conv(features, dtype=self.dtype, **args)
            return layers.spectral_norm(layer, x, train=train) if self.spectral_norm else layer(x)

        hidden = self.features if self.optimized else layers.channels(x)
        h = x if self.optimized else layers.each(nn.relu, x)
        x = h if self.relu_shortcut else x
        h = conv(h, hidden, gain=_GAIN)
        h = conv(layers.each(nn.relu, h), self.features, gain=_GAIN, down=self.down)
        if self.down or layers.channels(x) != self.features:
            x = conv(x, self.features, kernel=1, down=self.down)
        return layers.each(jnp.add, h, x)


class GBlock(nn.Module):
    """Generator block: (norm)-ReLU-(up)-conv-(norm)-ReLU-conv, shortcut (up)-1×1; hidden = out.

    With `batch_norm`, a norm must also follow the last block.
    """

    features: int
    up: bool = False
    batch_norm: bool = False
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps [N, H, W, C] to [N, H, W, features], or twice H and W if `up`."""
        normalize = self.batch_norm and train
        conv = partial(layers.Conv, self.features, before_batch_norm=normalize, dtype=self.dtype)

        def norm(x: Array) -> Array:
            return image_norm(x, train=train, dtype=self.dtype) if self.batch_norm else x

        h = conv(gain=_GAIN, up=self.up)(nn.relu(norm(x)))
        h = conv(gain=_GAIN, fold_pixels=True)(nn.relu(norm(h)))
        if self.up or x.shape[-1] != self.features:
            # The 1×1 convolution commutes with the resampling and is cheaper before it.
            x = conv(kernel=1)(x)
            x = layers.upsample(x) if self.up else x
        return h + x


def image_norm(x: Array, *, train: bool, dtype: str) -> Array:
    """Applies BatchNorm over [N, H, W], with PyTorch's momentum and ε; call it inside a module.

    The variance is E[x²] - E[x]², in one pass. In float32 its relative error is about 2e-7 times
    (mean/deviation)²: 2% at a ratio of 300; at 1000, outputs are wrong by up to a half. Two passes
    have no such error, but a training step with Mimicry's nets then accesses 13% more bytes by
    XLA's count, and takes 4% (an eighth of the channels) to 7% (a quarter) longer on two CPU cores.
    """
    return nn.BatchNorm(
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=batch_axis(),
    )(x)


def dense(features: int, dtype: str) -> nn.Dense:
    """Returns a linear layer with Mimicry's initialization."""
    return nn.Dense(features, kernel_init=nn.initializers.xavier_uniform(), dtype=dtype)


class _Trunk(nn.Module):
    """Maps an image to features at a quarter (with `patch=2`) of its height and width."""

    width: int
    blocks: int
    patch: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        block = partial(DBlock, 2 * self.width, dtype=self.dtype)
        x = layers.Conv(self.width, dtype=self.dtype)(layers.space_to_depth(x, self.patch))
        x = block(down=True)(x, train=train)
        for _ in range(self.blocks):
            x = block()(x, train=train)
        return nn.relu(x)


class _Sizes(nn.Module):
    """The family's arguments, all of which each of its nets accepts."""

    width: int = 32  # channels of E's and G's outer layers; the inner ones have twice as many
    critic_width: int = 16  # the same for d
    blocks: int = 1  # residual blocks at the lowest resolution
    patch: int = 2  # side of the patches that are folded into channels
    dtype: str = "float32"


class Encoder(_Sizes, kw_only=True):
    """E before its BatchNorm: [N, H, W, C] to [N, latent_dim]; H and W divisible by 2·patch."""

    latent_dim: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Flattens the trunk's features into a linear layer."""
        x = _Trunk(self.width, self.blocks, self.patch, self.dtype)(x, train=train)
        return layers.at_least_float32(dense(self.latent_dim, self.dtype)(x.reshape(len(x), -1)))


class Decoder(_Sizes, kw_only=True):
    """G: [N, latent_dim] to images [N, H, W, C] within [-1, 1]."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Mirrors the encoder."""
        height, width, channels = self.shape
        size = (height // (2 * self.patch), width // (2 * self.patch), 2 * self.width)
        x = dense(size[0] * size[1] * size[2], self.dtype)(z).reshape(-1, *size)
        for _ in range(self.blocks):
            x = GBlock(2 * self.width, dtype=self.dtype)(x, train=train)
        x = GBlock(self.width, up=True, dtype=self.dtype)(x, train=train)
        x = layers.Conv(self.patch**2 * channels, dtype=self.dtype)(nn.relu(x))
        return jnp.tanh(layers.depth_to_space(layers.at_least_float32(x), self.patch))


class Critic(BaseCritic, _Sizes):
    """d: [N, H, W, C] to one number per image [N]."""

    @nn.compact
    def features(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps images to the trunk's features [N, k], and to the number [N]."""
        x = _Trunk(self.critic_width, self.blocks, self.patch, self.dtype)(x, train=train)
        x = x.reshape(len(x), -1)
        return layers.at_least_float32(x), layers.at_least_float32(dense(1, self.dtype)(x)[:, 0])
