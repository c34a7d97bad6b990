"""Layers against PyTorch's and against XLA's own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax

from pmjax.nets import layers


def images(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1)))


def from_torch(x):
    return np.moveaxis(x.numpy(), 1, -1)


@pytest.mark.parametrize("count", [1, 16, 19])
def test_convolution_has_the_gradients_of_its_definition(count):
    x, w, g = images(count, 6, 5, 3), images(3, 3, 3, 4), images(count, 6, 5, 4)

    def plain(x, w):
        return lax.conv_general_dilated(
            x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    expected, pull_plain = jax.vjp(plain, x, w)
    found, pull = jax.vjp(jax.jit(lambda x, w: layers.conv2d(x, w, 1)), x, w)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(pull(g), pull_plain(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_upsampling_equals_pytorch_bilinear():
    x = images(2, 4, 6, 3)
    expected = torch.nn.functional.interpolate(
        to_torch(x), scale_factor=2, mode="bilinear", align_corners=False
    )
    np.testing.assert_allclose(layers.upsample(jnp.asarray(x)), from_torch(expected), atol=1e-6)


def test_convolution_with_pooling_equals_its_two_steps_with_its_gradients():
    x, w = images(3, 6, 4, 5), images(3, 3, 5, 2)
    expected, pull_plain = jax.vjp(lambda x, w: layers.downsample(layers.conv2d(x, w, 1)), x, w)
    found, pull = jax.vjp(layers.conv_down, x, w)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    g = images(*expected.shape)
    for a, b in zip(pull(g), pull_plain(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_convolution_with_upsampling_equals_its_two_steps_with_its_gradients():
    x, w = images(3, 4, 3, 5), images(3, 3, 5, 2)
    expected, pull_plain = jax.vjp(lambda x, w: layers.conv2d(layers.upsample(x), w, 1), x, w)
    found, pull = jax.vjp(layers.conv_up, x, w)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    g = images(*expected.shape)
    for a, b in zip(pull(g), pull_plain(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_downsampling_equals_pytorch_average_pooling():
    x = images(2, 4, 6, 3)
    expected = torch.nn.functional.avg_pool2d(to_torch(x), 2)
    np.testing.assert_allclose(layers.downsample(x), from_torch(expected), atol=1e-6)


def test_depth_to_space_inverts_space_to_depth():
    x = images(2, 8, 12, 3)
    folded = layers.space_to_depth(x, 4)
    assert folded.shape == (2, 2, 3, 48)
    np.testing.assert_array_equal(layers.depth_to_space(folded, 4), x)
    np.testing.assert_array_equal(folded[0, 1, 2].reshape(4, 4, 3), x[0, 4:8, 8:12])
