"""Layers against PyTorch's and against XLA's own derivatives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from jax import lax

from pmjax.nets import base as nets
from pmjax.nets import layers
from pmjax.nets.resnet import image_norm


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


class ImageNorm(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return image_norm(x, train=train, dtype="float32")


@pytest.mark.parametrize("ratio", [1, 30, 300, 1000])
def test_image_batch_norms_variance_has_the_stated_relative_error(ratio):
    x = 0.1 * (images(32, 16, 16, 4) + np.float32(ratio))
    params, before = nets.init(ImageNorm(), jax.random.key(0), x)
    _, after = nets.update(ImageNorm(), params, before, x)
    old, new = (stats["batch_stats"]["BatchNorm_0"]["var"] for stats in (before, after))
    variance = (np.asarray(new, np.float64) - 0.9 * np.asarray(old)) / 0.1
    exact = x.astype(np.float64).var((0, 1, 2))
    assert np.abs(variance / exact - 1).max() < 1e-3 + 3e-7 * ratio**2


def test_embeddings_have_the_variance_n_over_n_minus_1_in_inference():
    num = 64
    norm = layers.LatentBatchNorm(momentum=0.0)  # the running variance is the batch's
    z = 5 + 3 * images(num, 4)
    params, stats = nets.init(norm, jax.random.key(0), z)
    _, stats = nets.update(norm, params, stats, z)
    population = 9 * np.var(images(num, 4), 0, ddof=1)  # the unbiased estimate
    scale = np.std(nets.apply(norm, params, stats, z), 0) / np.std(z, 0)
    np.testing.assert_allclose(scale**2 * population, num / (num - 1), rtol=1e-4)
