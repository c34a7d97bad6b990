"""Mimicry's residual nets for 32 and 64 pixels (Lee and Town 2020): G32, D32, G64 and D64.

G and d are Mimicry's in every layer. E is d's trunk without spectral norm, flattened into a linear
layer. `scale` multiplies all numbers of channels, for quick trials.
"""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pmjax.errors import UserError
from pmjax.nets.base import Critic as BaseCritic
from pmjax.nets.layers import Batches, Conv, at_least_float32, each, spectral_norm
from pmjax.nets.resnet import DBlock, GBlock, dense, image_norm

# By image size: G's channels from 4×4 pixels up, and D's blocks (channels, down).
_GENERATOR = {32: (256, 256, 256, 256), 64: (1024, 512, 256, 128, 64)}
_CRITIC = {
    32: ((128, True), (128, True), (128, False), (128, False)),
    64: ((64, True), (128, True), (256, True), (512, True), (1024, True)),
}


def generator_channels(height: int, width: int, scale: float) -> list[int]:
    """Returns G's channels at 4×4 pixels, 8×8 and so on, for images of a size."""
    return [max(1, int(scale * n)) for n in _of_size(_GENERATOR, height, width)]


def critic_blocks(height: int, width: int, scale: float) -> list[tuple[int, bool]]:
    """Returns the channels of D's blocks, and whether they halve height and width."""
    return [(max(1, int(scale * n)), down) for n, down in _of_size(_CRITIC, height, width)]


def _of_size(table: dict[int, Any], height: int, width: int) -> Any:
    if height != width or height not in table:
        raise UserError(
            f"The nets 'mimicry' are for images of 32×32 or 64×64 pixels, not {height}×{width}: "
            f"set --config.data.size=64, or --config.nets=resnet."
        )
    return table[height]


class _Trunk(nn.Module):
    """The blocks of D, which E shares."""

    scale: float
    relu_shortcut: bool
    spectral_norm: bool
    dtype: str

    @nn.compact
    def __call__(self, x: Batches, *, train: bool) -> Batches:
        _, height, width, _ = jax.tree.leaves(x)[0].shape
        for index, (channels, down) in enumerate(critic_blocks(height, width, self.scale)):
            x = DBlock(
                channels,
                down=down,
                optimized=index == 0,
                relu_shortcut=self.relu_shortcut,
                spectral_norm=self.spectral_norm,
                dtype=self.dtype,
            )(x, train=train)
        return each(nn.relu, x)


class _Options(nn.Module):
    """The arguments of every net of the family."""

    scale: float = 1.0  # multiplies all numbers of channels
    relu_shortcut: bool = True  # E's and d's shortcuts receive relu(x), as Mimicry's; or x
    dtype: str = "float32"


class Encoder(_Options, kw_only=True):
    """E before its BatchNorm: [N, H, W, C] to [N, latent_dim]."""

    latent_dim: int

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """Flattens the trunk's features into a linear layer."""
        x = _Trunk(self.scale, self.relu_shortcut, False, self.dtype)(x, train=train)
        return at_least_float32(dense(self.latent_dim, self.dtype)(x.reshape(len(x), -1)))


class Decoder(_Options, kw_only=True):
    """G32 and G64: [N, latent_dim] to images [N, H, W, C] within [-1, 1]."""

    shape: tuple[int, int, int]

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Applies a linear layer to 4×4 pixels, blocks that double the size, and a convolution."""
        height, width, channels = self.shape
        first, *others = generator_channels(height, width, self.scale)
        x = dense(4 * 4 * first, self.dtype)(z).reshape(-1, 4, 4, first)
        for features in others:
            x = GBlock(features, up=True, batch_norm=True, dtype=self.dtype)(x, train=train)
        x = nn.relu(image_norm(x, train=train, dtype=self.dtype))
        return jnp.tanh(at_least_float32(Conv(channels, fold_pixels=True, dtype=self.dtype)(x)))


class Critic(BaseCritic, _Options):
    """D32 and D64: [N, H, W, C] to one number per image [N], with spectral norm in every layer."""

    supports_multi_batch: ClassVar[bool] = True

    @nn.compact
    def features(self, x: Batches, *, train: bool) -> tuple[Batches, Batches]:
        """Maps images to the trunk's features [N, k], and their sums over pixels to [N]."""
        x = _Trunk(self.scale, self.relu_shortcut, True, self.dtype)(x, train=train)
        sums = each(lambda x: x.sum((1, 2)), x)
        if isinstance(sums, tuple):
            sums = jnp.stack(sums, 1)
        out: Batches = at_least_float32(
            spectral_norm(dense(1, self.dtype), sums, train=train)[..., 0]
        )
        if isinstance(x, tuple):
            out = tuple(out[:, index] for index in range(len(x)))
        return each(lambda x: at_least_float32(x.reshape(len(x), -1)), x), out
