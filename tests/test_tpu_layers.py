"""TPU's forms of the layers, which compute the same on any machine."""

import jax
import numpy as np
import pytest
from jax import lax

from pmjax.nets import _tpu, layers


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def agree(form, definition, *arguments):
    found, pull = jax.vjp(jax.jit(form), *arguments)
    expected, pull_expected = jax.vjp(jax.jit(definition), *arguments)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    g = images(*expected.shape, seed=2)
    for a, b in zip(pull(g), pull_expected(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


def convolution(x, w):
    return lax.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize("width, features", [(6, 64), (6, 5), (5, 5), (4, 65)])
def test_convolution_with_pixels_folded_or_not(width, features):
    x, w = images(2, 3, width, 7), images(3, 3, 7, features, seed=1)
    agree(_tpu.paired_conv, convolution, x, w)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_with_pooling(kernel):
    x, w = images(2, 6, 4, 5), images(kernel, kernel, 5, 3, seed=1)
    agree(_tpu.conv_down, lambda x, w: layers.downsample(convolution(x, w)), x, w)


@pytest.mark.parametrize("width, features", [(1, 4), (2, 4), (5, 64), (3, 65)])
def test_convolution_with_upsampling(width, features):
    x, w = images(2, 3, width, 5), images(3, 3, 5, features, seed=1)
    agree(_tpu.conv_up, lambda x, w: convolution(layers.upsample(x), w), x, w)


@pytest.mark.parametrize("features", [3, 64, 65])
def test_upsampling(features):
    agree(_tpu.upsample, layers.upsample, images(2, 3, 4, features))
