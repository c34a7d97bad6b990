"""Layers that the families share: convolution, resampling, spectral norm, latent BatchNorm."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array, lax

from pmjax.distributed.collectives import batch_axis, sum_over_shards
from pmjax.nets import tpu_layers

# XLA:CPU's filter gradient unrolls the whole batch into one matrix, which is two to three times
# slower once the matrix exceeds the cache. Sixteen images fit.
_CHUNK = 16
_FEW_CHANNELS = 4

Batches = Any  # an Array, or a tuple of Arrays that share one preparation of the weights


each = jax.tree.map  # applies a function to a batch, or to each batch of a tuple


def channels(x: Batches) -> int:
    """Returns the number of channels of a batch, or of all batches of a tuple."""
    return jax.tree.leaves(x)[0].shape[-1]


def _conv(x: Array, w: Array, padding: int, dimensions: tuple = tpu_layers.FORMATS) -> Array:
    pad = (padding, padding)
    return lax.conv_general_dilated(x, w, (1, 1), (pad, pad), dimension_numbers=dimensions)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def conv2d(x: Array, w: Array, padding: int) -> Array:
    """Convolves images [N, H, W, C] with a kernel [k, k, C, O]; stride 1, zero padding.

    The forward pass is `lax.conv_general_dilated`. On CPUs, where XLA's filter gradient is slow,
    it is computed in chunks of the batch.
    """
    return _conv(x, w, padding)


def _conv2d_forward(x: Array, w: Array, padding: int) -> tuple[Array, tuple[Array, Array]]:
    return _conv(x, w, padding), (x, w)


def _conv2d_backward(padding: int, residuals: tuple[Array, Array], g: Array) -> tuple:
    x, w = residuals
    dx = _conv(g, jnp.flip(w, (0, 1)).swapaxes(2, 3), w.shape[0] - 1 - padding)
    filter_gradient = partial(_conv, padding=padding, dimensions=("CHWN", "IHWO", "HWNC"))

    def chunked(x, g):
        parts = [slice(i, i + _CHUNK) for i in range(0, len(x), _CHUNK)]
        return sum(filter_gradient(x[part], g[part]) for part in parts)

    def local(x, g):
        return lax.platform_dependent(x, g, cpu=chunked, default=filter_gradient)

    return dx, sum_over_shards(local, x, g)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


def paired_conv(x: Array, w: Array) -> Array:
    """Computes `conv2d` for a kernel [3, 3, C, O]; on TPUs with few channels, a faster form."""
    return lax.platform_dependent(
        x, w, tpu=tpu_layers.paired_conv, default=partial(conv2d, padding=1)
    )


def pointwise(x: Array, w: Array) -> Array:
    """Computes a 1×1 convolution with a kernel [1, 1, C, O]."""
    return lax.platform_dependent(x, w, tpu=tpu_layers.pointwise, default=lambda x, w: x @ w[0, 0])


# A 3-tap filter on the coarser grid: [tap, position in the pixel pair, 3].
_DOWN = np.array([[[1, 0, 0], [1, 1, 0]], [[0, 1, 1], [0, 0, 1]]]) / 2


def conv_down(x: Batches, w: Array, dtype: str | None = None) -> Batches:
    """Convolves with a kernel [k, k, C, O], k = 1 or 3, then averages 2×2 pixels: halves H and W.

    For k = 3 both are one 4×4 convolution with stride 2, with 16/36 of the products; with 2×2
    pixels folded into channels, a 2×2 convolution with stride 1. A 1×1 convolution is cheaper
    after the average. Computes in `dtype` (None: that of x).
    """
    dtype = dtype or jax.tree.leaves(x)[0].dtype
    default = _conv_down if w.shape[0] > 1 else _average_down
    return lax.platform_dependent(
        x,
        w,
        tpu=lambda x, w: tpu_layers.conv_down(each(lambda x: x.astype(dtype), x), w),
        default=lambda x, w: each(partial(default, w=w, dtype=dtype), x),
    )


def _average_down(x: Array, w: Array, *, dtype: str) -> Array:
    return downsample(x).astype(dtype) @ w.astype(dtype)[0, 0]


def _conv_down(x: Array, w: Array, *, dtype: str) -> Array:
    x = x.astype(dtype)
    w = jnp.einsum("iak,jbl,klco->ijabco", _DOWN, _DOWN, w).astype(x.dtype)
    x = space_to_depth(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))), 2)
    return conv2d(x, w.reshape(2, 2, x.shape[-1], -1), 0)


def conv_up(x: Array, w: Array) -> Array:
    """Doubles H and W bilinearly, then convolves with a kernel [3, 3, C, O].

    On CPUs in the opposite order, with the same result: the coarse pixels are multiplied by all
    nine taps, a quarter of the products, and the nine results are resampled.
    """

    def taps_first(x, w):
        n, height, width, c = x.shape
        taps = x.reshape(-1, c) @ w.transpose(2, 0, 1, 3).reshape(c, -1)
        taps = taps.reshape(n, height, width, 3, 3, -1)
        rows = _upsample_taps([taps[:, :, :, k] for k in range(3)], 1)
        return _upsample_taps([rows[:, :, :, k] for k in range(3)], 2)

    return lax.platform_dependent(
        x,
        w,
        cpu=taps_first,
        tpu=tpu_layers.conv_up,
        default=lambda x, w: conv2d(upsample(x), w, 1),
    )


def _upsample_taps(taps: list[Array], axis: int) -> Array:
    """Doubles an axis of three taps' products, and adds them as a zero-padded convolution does."""
    size = taps[0].shape[axis]
    (even0, odd0), (even1, odd1), (even2, odd2) = (_halves(tap, axis) for tap in taps)
    zero = jnp.zeros_like(_at(even0, axis, 0, 1))
    left = jnp.concatenate([zero, _at(odd0, axis, 0, size - 1)], axis)
    right = jnp.concatenate([_at(even2, axis, 1, size), zero], axis)
    return _interleave(left + even1 + odd2, even0 + odd1 + right, axis)


class Conv(nn.Module):
    """Convolution with bias, stride 1, Xavier-uniform with a gain (Mimicry's initialization)."""

    features: int
    kernel: int = 3
    gain: float = 1.0
    up: bool = False  # doubles height and width bilinearly before the convolution
    down: bool = False  # averages 2×2 pixels after the convolution
    fold_pixels: bool = False  # on TPUs, in pairs along a row; for stacks of such layers
    before_batch_norm: bool = False  # which cancels the bias
    dtype: str = "float32"  # of the computation; the parameters are float32

    @nn.compact
    def __call__(self, x: Batches) -> Batches:
        """Maps [N, H, W, C] to [N, H, W, features], or half of H and W if `down`."""
        init = nn.initializers.variance_scaling(self.gain**2, "fan_avg", "uniform")
        w = self.param("kernel", init, (self.kernel, self.kernel, channels(x), self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        if self.before_batch_norm:  # then the bias's gradient is 0, and needs no sum on TPUs
            bias = lax.platform_dependent(bias, tpu=lax.stop_gradient, default=lambda bias: bias)
        bias = bias.astype(self.dtype)
        if self.down:
            return each(lambda y: y + bias, conv_down(x, w, self.dtype))
        w = w.astype(self.dtype)
        return each(lambda x: self._convolve(x.astype(self.dtype), w, bias), x)

    def _convolve(self, x: Array, w: Array, bias: Array) -> Array:
        if self.up:
            return conv_up(x, w) + bias
        if self.kernel == 1:
            return pointwise(x, w) + bias
        if self.fold_pixels:
            return paired_conv(x, w) + bias
        y = conv2d(x, w, self.kernel // 2)
        if x.shape[-1] > _FEW_CHANNELS:
            return y + bias
        return lax.platform_dependent(y, bias, tpu=tpu_layers.add_bias, default=jnp.add)


def at_least_float32(x: Array) -> Array:
    """Converts half precision to float32; returns other types unchanged."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def spectral_norm(layer: nn.Module, x: Batches, *, train: bool) -> Batches:
    """Applies a layer, its weights divided by their largest singular value (Miyato et al. 2018).

    Each call makes one power iteration. The collection 'spectral' holds its vectors, which change
    if `train` and the caller makes them mutable.
    """
    return nn.SpectralNorm(layer, collection_name="spectral")(x, update_stats=train)


def upsample(x: Array) -> Array:
    """Doubles height and width bilinearly (pixel centers, as PyTorch's align_corners=False)."""

    def interleaved(x):
        for axis in (1, 2):
            x = _interleave(*_halves(x, axis), axis)
        return x

    return lax.platform_dependent(x, tpu=tpu_layers.upsample, default=interleaved)


def _halves(x: Array, axis: int) -> tuple[Array, Array]:
    """Returns the even and the odd pixels of an axis that is doubled bilinearly."""
    size = x.shape[axis]
    before = jnp.concatenate([_at(x, axis, 0, 1), _at(x, axis, 0, size - 1)], axis)
    after = jnp.concatenate([_at(x, axis, 1, size), _at(x, axis, size - 1, size)], axis)
    return 0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after


def _interleave(even: Array, odd: Array, axis: int) -> Array:
    shape = even.shape
    pair = jnp.stack([even, odd], axis + 1)
    return pair.reshape(*shape[:axis], 2 * shape[axis], *shape[axis + 1 :])


def _at(x: Array, axis: int, start: int, stop: int) -> Array:
    return lax.slice_in_dim(x, start, stop, axis=axis)


def downsample(x: Array) -> Array:
    """Halves height and width by averaging 2×2 pixels."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


def space_to_depth(x: Array, factor: int) -> Array:
    """Moves factor×factor pixels into channels: [N, H, W, C] to [N, H/f, W/f, f·f·C]."""
    n, h, w, c = x.shape
    x = x.reshape(n, h // factor, factor, w // factor, factor, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h // factor, w // factor, factor * factor * c)


def depth_to_space(x: Array, factor: int) -> Array:
    """Inverts `space_to_depth`."""
    n, h, w, c = x.shape
    x = x.reshape(n, h, w, factor, factor, c // factor**2)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(n, h * factor, w * factor, c // factor**2)


class LatentBatchNorm(nn.Module):
    """Equation (11): gives every latent coordinate mean 0 and variance 1 over the batch.

    The statistics are those of the global batch on any number of devices. Inference uses the
    running statistics in the collection 'batch_stats', which change if the caller makes them
    mutable. The running variance is the mean of the batches' own, which divide by N: it is (N-1)/N
    of the population's, so that embeddings have the variance N/(N-1) in inference, 64/63 for
    batches of 64. (PyTorch's running variance divides by N-1.)
    """

    affine: bool = False  # whether a learned scale and bias follow
    momentum: float = 0.99

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d], with the batch's statistics if `train`, else the running ones."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            use_bias=self.affine,
            use_scale=self.affine,
            use_fast_variance=False,
            axis_name=batch_axis(),
        )(z)
