"""The layers' convolutions and resampling in forms that are fast on TPUs, with the same values.

A TPU multiplies for 128 output channels at a time; moving pixels costs more than multiplying.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

FORMATS = ("NHWC", "HWIO", "NHWC")  # of images, kernels and images
_COLUMNS = 128  # of a matrix unit
_PIXELS = 64  # largest image that is resampled by one matrix product, mostly with zeros


def _conv(
    x: Array, w: Array, rows: tuple, columns: tuple, stride: int = 1, doubled: bool = False
) -> Array:
    """Convolves; `doubled` first inserts a row of zeros between rows."""
    return lax.conv_general_dilated(
        x, w, (stride, stride), (rows, columns), (1 + doubled, 1), dimension_numbers=FORMATS
    )


def paired_conv(x: Array, w: Array) -> Array:
    """Computes `layers.conv2d` for [3, 3, C, O]; folds two pixels of few channels into one.

    Half of the folded kernel is zeros, but without folding more of the matrix unit would be idle.
    """
    if 2 * w.shape[-1] > _COLUMNS or x.shape[2] % 2:
        return _conv(x, w, (1, 1), (1, 1))
    before, center, after = (w[:, tap] for tap in range(3))
    none = jnp.zeros_like(center)
    kernel = jnp.stack(
        [
            _fold([none, none], [before, none]),
            _fold([center, before], [after, center]),
            _fold([none, after], [none, none]),
        ],
        1,
    )
    n, height, width, c = x.shape
    y = _conv(x.reshape(n, height, width // 2, 2 * c), kernel, (1, 1), (1, 1))
    return y.reshape(n, height, width, -1)


def pointwise(x: Array, w: Array) -> Array:
    """Computes `layers.pointwise`; with few channels as a convolution.

    A matrix product would change the memory layout that the neighboring convolutions need.
    """
    return x @ w[0, 0] if 2 * w.shape[-1] > _COLUMNS else _conv(x, w, (0, 0), (0, 0))


def _fold(*kernels: list[Array]) -> Array:
    """Joins the kernels from each pixel of a pair (a list) to each pixel (its elements)."""
    return jnp.concatenate([jnp.concatenate(to, -1) for to in kernels], -2)


@jax.custom_vjp
def add_bias(y: Array, bias: Array) -> Array:
    """Adds a bias [C] to [N, H, W, C]; y's gradient is computed before it is used.

    XLA would otherwise compute the gradient again for each of the nine taps of a convolution of
    few channels, which costs more than the convolution.
    """
    return y + bias


add_bias.defvjp(
    lambda y, bias: (y + bias, None),
    lambda _, g: (lax.optimization_barrier(g), g.sum((0, 1, 2))),
)


def conv_down(x: Array | tuple[Array, ...], w: Array) -> Array | tuple[Array, ...]:
    """Computes `layers.conv_down` as one convolution with stride 2; w is [k, k, C, O], k = 1, 3."""
    padding = w.shape[0] // 2
    places = ((0, 1), (1, 0))
    shifted = [jnp.pad(w, (*place, (0, 0), (0, 0))) for place in itertools.product(places, places)]
    w = jnp.asarray(sum(shifted) / 4).astype(jax.tree.leaves(x)[0].dtype)
    return jax.tree.map(lambda x: _conv(x, w, (padding, padding), (padding, padding), 2), x)


def conv_up(x: Array, w: Array) -> Array:
    """Computes `layers.conv_up` in one of two orders, depending on the number of channels.

    Many channels: the coarse pixels are multiplied by all nine taps, a quarter of the products, and
    the results are resampled. Few channels, where moving nine results would cost too much: the
    image is upsampled in height, and the width is convolved on the coarse grid. The even and odd
    pixels of a row are then channels of a convolution of the coarse row, with a correction at the
    row's ends, where the padding of the image and of its upsampling differ.
    """
    if 2 * w.shape[-1] > _COLUMNS:
        return _taps_first(x, w)
    x = _double_height(x)
    before, center, after = (w[:, tap].astype(jnp.float32) for tap in range(3))
    kernel = [
        _fold([3 * before + center, before]),
        _fold([before + 3 * (center + after), 3 * (before + center) + after]),
        _fold([after, center + 3 * after]),
    ]
    return _from_coarse(x, kernel, _fold([center - before, before]), _fold([after, center - after]))


def _taps_first(x: Array, w: Array) -> Array:
    n, height, width, c = x.shape
    rows, columns = _taps_up(height), _taps_up(width)
    if height * width > _PIXELS:
        y = jnp.einsum("nhwc,klco->nhwklo", x, w)
        y = jnp.einsum("nhwklo,pkh->npwlo", y, rows.astype(x.dtype))
        return jnp.einsum("npwlo,qlw->npqo", y, columns.astype(x.dtype))
    both = np.einsum("pkh,qlw->pqhwkl", rows, columns).reshape(4 * height * width, -1, 9)
    y = x.reshape(n, -1, c) @ w.transpose(2, 0, 1, 3).reshape(c, -1)
    y = jnp.einsum("nhto,pht->npo", y.reshape(n, both.shape[1], 9, -1), both.astype(x.dtype))
    return y.reshape(n, 2 * height, 2 * width, -1)


def upsample(x: Array) -> Array:
    """Computes `layers.upsample` as matrix products or, for few channels, as convolutions."""
    if 2 * x.shape[-1] > _COLUMNS:
        height, width = (_bilinear(size).astype(x.dtype) for size in x.shape[1:3])
        return jnp.einsum("nhwc,ph->npwc", jnp.einsum("nhwc,qw->nhqc", x, width), height)
    one = jnp.eye(x.shape[-1])[None]
    zero = jnp.zeros_like(one)
    kernel = [_fold([one, zero]), _fold([3 * one, 3 * one]), _fold([zero, one])]
    return _from_coarse(_double_height(x), kernel, _fold([one, zero]), _fold([zero, one]))


def _from_coarse(x: Array, kernel: list[Array], first: Array, last: Array) -> Array:
    """Computes two pixels for each pixel of a row.

    Args:
      x: [N, H, W, C].
      kernel: four times the kernels of the previous, this and the next pixel, [k, C, 2 O] each, to
        the channels of both new pixels.
      first: four times the correction at the first pixel.
      last: four times the correction at the last pixel.
    """
    rows = (len(first) // 2, len(first) // 2)
    all_taps = (jnp.stack(kernel, 1), first[:, None], last[:, None])
    inner, start, stop = ((taps / 4).astype(x.dtype) for taps in all_taps)
    x, left, right = _with_ends(x)
    y = _conv(x, inner, rows, (1, 1))
    n, height, width, _ = y.shape
    for end, taps, space in ((left, start, (0, width - 1)), (right, stop, (width - 1, 0))):
        y += jnp.pad(_conv(end, taps, rows, (0, 0)), ((0, 0), (0, 0), space, (0, 0)))
    return y.reshape(n, height, 2 * width, -1)


@jax.custom_vjp
def _with_ends(x: Array) -> tuple[Array, Array, Array]:
    """Returns rows of pixels, and their first and last pixels.

    The gradients of both ends are added in place; padded to rows, they would be convolved in full.
    """
    return x, x[:, :, :1], x[:, :, -1:]


def _with_ends_backward(_: None, gradients: tuple[Array, Array, Array]) -> tuple[Array]:
    g, first, last = gradients
    g = lax.dynamic_update_slice_in_dim(g, g[:, :, :1] + first, 0, 2)
    return (lax.dynamic_update_slice_in_dim(g, g[:, :, -1:] + last, g.shape[2] - 1, 2),)


_with_ends.defvjp(lambda x: (_with_ends(x), None), _with_ends_backward)


def _double_height(x: Array) -> Array:
    """Doubles the height bilinearly by a convolution, whose layout XLA may choose freely.

    Zero padding, in place of the repeated last pixel, leaves the ends at 3/4 of their value, which
    is corrected.
    """
    taps = np.multiply.outer([1, 3, 3, 1], np.eye(x.shape[-1]))[:, None] / 4
    y = _conv(x, jnp.asarray(taps, x.dtype), (2, 2), (0, 0), doubled=True)
    rows = np.pad(np.ones(y.shape[1] - 2), 1, constant_values=4 / 3)
    return (y * jnp.float32(rows)[:, None, None]).astype(x.dtype)


def _taps_up(size: int) -> np.ndarray:
    """Returns [2 size, 3, size]: the places of three taps' products on a doubled axis."""
    beyond = np.pad(_bilinear(size), ((1, 1), (0, 0)))
    return np.stack([beyond[tap : tap + 2 * size] for tap in range(3)], 1)


def _bilinear(size: int) -> np.ndarray:
    """Returns the matrix [2 size, size] that doubles one axis."""
    places = np.arange(2 * size)
    pixel = places // 2
    neighbor = np.clip(pixel + np.where(places % 2, 1, -1), 0, size - 1)
    return 0.75 * np.eye(size)[pixel] + 0.25 * np.eye(size)[neighbor]
