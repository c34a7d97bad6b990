"""Layers that the nets share: convolution, resampling, residual blocks, latent BatchNorm."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pmjax.parallel import sum_over_shards

Array = jax.Array

# XLA:CPU's filter gradient unrolls the whole batch into one matrix; beyond the cache that costs
# two to three times the work itself. Eight images at a time stay inside.
_FILTER_GRADIENT_CHUNK = 8


def _conv(x: Array, w: Array) -> Array:
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@jax.custom_vjp
def conv2d(x: Array, w: Array) -> Array:
    """Convolves images [N, H, W, C] with an odd kernel [k, k, C, O], stride 1, SAME padding.

    Forward it is `lax.conv_general_dilated`; the filter's gradient is computed in chunks of the
    batch on CPU, where XLA's own is slow, and by XLA elsewhere.
    """
    return _conv(x, w)


def _conv2d_forward(x, w):
    return _conv(x, w), (x, w)


def _conv2d_backward(residuals, g):
    x, w = residuals
    dx = _conv(g, jnp.flip(w, (0, 1)).swapaxes(2, 3))
    pad = w.shape[0] // 2

    def filter_gradient(x, g):
        return lax.conv_general_dilated(
            x, g, (1, 1), ((pad, pad), (pad, pad)), dimension_numbers=("CHWN", "IHWO", "HWNC")
        )

    def chunked(x, g):
        parts = range(0, x.shape[0], _FILTER_GRADIENT_CHUNK)
        cut = partial(lax.slice_in_dim, axis=0)
        ends = [min(i + _FILTER_GRADIENT_CHUNK, x.shape[0]) for i in parts]
        return sum(
            filter_gradient(cut(x, i, j), cut(g, i, j)) for i, j in zip(parts, ends, strict=True)
        )

    def local(x, g):
        return lax.platform_dependent(x, g, cpu=chunked, default=filter_gradient)

    return dx, sum_over_shards(local, x, g)


conv2d.defvjp(_conv2d_forward, _conv2d_backward)


class Conv(nn.Module):
    """Convolution with bias, stride 1, Xavier-uniform with a gain (Mimicry's initialisation)."""

    features: int
    kernel: int = 3
    gain: float = 1.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Maps [N, H, W, C] to [N, H, W, features]."""
        init = nn.initializers.variance_scaling(self.gain**2, "fan_avg", "uniform")
        w = self.param("kernel", init, (self.kernel, self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        return (conv2d(x, w) if self.kernel > 1 else x @ w[0, 0]) + bias


def upsample(x: Array) -> Array:
    """Doubles height and width bilinearly (pixel centres, as PyTorch's align_corners=False)."""
    n, h, w, c = x.shape
    return jax.image.resize(x, (n, 2 * h, 2 * w, c), "bilinear")


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

    Non-affine unless `affine`. The statistics are the global batch's on any number of devices;
    the running ones, which inference uses, live in the collection 'batch_stats' and move only
    when the caller makes it mutable.
    """

    affine: bool = False
    momentum: float = 0.99
    axis: str | None = None

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps [N, d] to [N, d]; `train` takes the batch's statistics, else the running ones."""
        return nn.BatchNorm(
            use_running_average=not train,
            momentum=self.momentum,
            use_bias=self.affine,
            use_scale=self.affine,
            use_fast_variance=False,
            axis_name=self.axis,
        )(z)
