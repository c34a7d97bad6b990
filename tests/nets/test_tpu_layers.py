"""TPU's forms of the layers, which compute the same on any machine."""

import jax
import numpy as np
import pytest
from jax import lax

from pmjax.nets import layers, mimicry, tpu_layers


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
    agree(tpu_layers.paired_conv, convolution, x, w)


@pytest.mark.parametrize("kernel", [1, 3])
def test_convolution_with_pooling(kernel):
    x, w = images(2, 6, 4, 5), images(kernel, kernel, 5, 3, seed=1)
    agree(tpu_layers.conv_down, lambda x, w: layers.downsample(convolution(x, w)), x, w)


@pytest.mark.parametrize("height, width, features", [
    (3, 1, 4), (1, 2, 4), (3, 5, 64), (3, 3, 65), (3, 22, 65),
])  # fmt: skip
def test_convolution_with_upsampling(height, width, features):
    x, w = images(2, height, width, 5), images(3, 3, 5, features, seed=1)
    agree(tpu_layers.conv_up, lambda x, w: convolution(layers.upsample(x), w), x, w)


@pytest.mark.parametrize("features", [64, 65])
def test_convolution_of_single_pixels(features):
    x, w = images(2, 3, 4, 5), images(1, 1, 5, features, seed=1)
    agree(tpu_layers.pointwise, convolution, x, w)


@pytest.mark.parametrize("height, features", [(1, 3), (3, 3), (3, 64), (3, 65)])
def test_upsampling(height, features):
    agree(tpu_layers.upsample, layers.upsample, images(2, height, 4, features))


def test_adding_a_bias():
    agree(tpu_layers.add_bias, lambda y, bias: y + bias, images(2, 3, 4, 5), images(5, seed=1))


def test_biases_that_a_norm_takes_away_have_no_gradient():
    net = mimicry.Decoder(shape=(32, 32, 3), scale=1 / 64)
    z = images(6, 5)
    variables = net.init(jax.random.key(0), z, train=False)

    def loss(params):
        out, _ = net.apply(variables | {"params": params}, z, train=True, mutable=["batch_stats"])
        return (images(*out.shape, seed=1) * out).sum()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    convolutions = [
        layer
        for name, block in grads.items()
        if name.startswith("GBlock")
        for part, layer in block.items()
        if part.startswith("Conv")
    ]
    assert len(convolutions) == 9
    for layer in convolutions:
        assert np.abs(layer["bias"]).max() < 1e-5 * np.abs(layer["kernel"]).max()
    assert np.abs(grads["Conv_0"]["bias"]).min() > 1
