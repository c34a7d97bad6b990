"""Mimicry's networks: their published sizes and values, their geometry, and half precision."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
import torch.nn.functional as F
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.distributed import collectives
from pmjax.distributed.mesh import BATCH, make_mesh, replicate
from pmjax.errors import UserError
from pmjax.methods.base import NetBuilder
from pmjax.nets import base as nets
from pmjax.nets import mimicry
from pmjax.plugins import load
from pmjax.training.step import init_state, train_step

QUICK_COMPILE = {"xla_backend_optimization_level": 0}


def shapes(net, *inputs):
    return jax.eval_shape(partial(nets.init, net), jax.random.key(0), *inputs)


def millions(net, *inputs):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes(net, *inputs)[0])) / 1e6


@pytest.mark.parametrize("size, generator, critic", [(64, 12.22, 10.14), (32, 4.28, 1.05)])
def test_generators_and_critics_have_the_published_numbers_of_parameters(size, generator, critic):
    shape = (size, size, 3)
    assert round(millions(mimicry.Decoder(shape=shape), jnp.zeros((2, 128))), 2) == generator
    assert round(millions(mimicry.Critic(), jnp.zeros((2, *shape))), 2) == critic


def test_the_encoder_is_the_critics_trunk_and_a_linear_layer():
    x = jnp.zeros((2, 64, 64, 3))
    flattened = 2 * 2 * 1024
    trunk = millions(mimicry.Critic(), x) - (1024 + 1) / 1e6
    assert millions(mimicry.Encoder(latent_dim=128), x) == pytest.approx(
        trunk + (flattened + 1) * 128 / 1e6
    )


def as_mimicry_computes(images, params, spectral, downs):
    """Returns D's outputs as Mimicry's modules compute them, whose ReLUs work in place.

    A residual branch runs before its shortcut, which thus receives what the first ReLU left.
    """

    def layer(block, name):
        kernel = torch.tensor(np.asarray(params[block][name]["kernel"]))
        vectors = spectral[block][name.replace("Conv", "SpectralNorm")]
        w, u = kernel.flatten(0, -2), torch.tensor(np.asarray(vectors[f"{name}/kernel/u"]))[0]
        v = F.normalize(w @ u, dim=0)
        kernel = kernel / (v @ w).norm()
        bias = torch.tensor(np.asarray(params[block][name]["bias"]))
        pad = kernel.shape[0] // 2
        return lambda x: F.conv2d(x, kernel.permute(3, 2, 0, 1), bias, padding=pad)

    relu, x = torch.nn.ReLU(inplace=True), torch.tensor(images).permute(0, 3, 1, 2)
    for index, down in enumerate(downs):
        c1, c2 = (layer(f"DBlock_{index}", f"Conv_{number}") for number in range(2))
        changes = down or c2(c1(x)).shape[1] != x.shape[1]
        c_sc = layer(f"DBlock_{index}", "Conv_2") if changes else lambda x: x
        pool = partial(F.avg_pool2d, kernel_size=2) if down else lambda x: x
        if index == 0:  # DBlockOptimized
            h = pool(c2(relu(c1(x))))
            x = h + c_sc(pool(x))
        else:
            h = pool(c2(relu(c1(relu(x)))))
            x = h + pool(c_sc(x))
    return relu(x)


@pytest.mark.parametrize(
    "size, downs",
    [
        (32, [True, True, False, False]),  # has all kinds of blocks
        pytest.param(64, [True] * 5, marks=pytest.mark.slow),
    ],
)
def test_the_critics_trunk_computes_what_mimicrys_does(size, downs):
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (4, size, size, 3)).astype(np.float32)

    critic = mimicry.Critic(scale=1 / 16)
    params, stats = shapes(critic, images)
    params, stats = jax.tree.map(
        lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), (params, stats)
    )
    expected = (
        as_mimicry_computes(images, params["_Trunk_0"], stats["spectral"]["_Trunk_0"], downs)
        .permute(0, 2, 3, 1)
        .flatten(1)
        .numpy()
    )
    features = jax.jit(
        lambda *arrays: nets.apply(critic, *arrays, images, method="features")[0],
        compiler_options=QUICK_COMPILE,
    )
    assert np.abs(features(params, stats) - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("net, shape", [
    (mimicry.Encoder(latent_dim=8), (2, 28, 28, 1)),
    (mimicry.Critic(), (2, 64, 32, 3)),
    (mimicry.Decoder(shape=(48, 48, 3)), (2, 8)),
])  # fmt: skip
def test_other_sizes_are_refused_with_what_to_do(net, shape):
    with pytest.raises(UserError, match="32×32 or 64×64 pixels, not .* --config.data.size=64"):
        millions(net, jnp.zeros(shape))


def test_every_layer_of_the_critic_has_spectral_norm_and_no_layer_of_the_others():
    x = jnp.zeros((2, 32, 32, 3))
    args = {"scale": 0.05}
    params, stats = shapes(mimicry.Critic(**args), x)
    kernels = [p for p, _ in jax.tree_util.tree_leaves_with_path(params) if "kernel" in str(p)]
    vectors = [p for p, _ in jax.tree_util.tree_leaves_with_path(stats) if "/u" in str(p)]
    assert set(stats) == {"spectral"} and len(kernels) == len(vectors) == 11
    assert not shapes(mimicry.Encoder(latent_dim=4, **args), x)[1]
    assert set(shapes(mimicry.Decoder(shape=(32, 32, 3), **args), jnp.zeros((2, 4)))[1]) == {
        "batch_stats"
    }


@pytest.mark.parametrize("net, shape", [
    (mimicry.Encoder, (8, 32, 32, 3)), (mimicry.Critic, (8, 32, 32, 3)), (mimicry.Decoder, (8, 6)),
])  # fmt: skip
def test_half_precision_gives_float32_outputs_and_statistics_near_single_precisions(net, shape):
    args = {mimicry.Encoder: {"latent_dim": 6}, mimicry.Decoder: {"shape": (32, 32, 3)}}
    args = {"scale": 1 / 16, **args.get(net, {})}
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)

    def called(precision):
        @partial(jax.jit, compiler_options=QUICK_COMPILE)
        def call(x):
            single, half = net(**args), net(dtype=precision, **args)
            params, stats = nets.init(single, jax.random.key(0), x)
            return nets.update(half, params, stats, x)

        return jax.device_get(call(x))

    (single, single_stats), (half, half_stats) = called("float32"), called("bfloat16")
    assert {a.dtype for a in jax.tree.leaves((half, half_stats))} == {np.dtype(np.float32)}
    assert 0 < np.linalg.norm(half - single) < 0.03 * np.linalg.norm(single)
    chex.assert_trees_all_close(half_stats, single_stats, atol=0.05)


@pytest.mark.slow
def test_a_short_run_in_half_precision_follows_single_precision_within_two_percent():
    x = np.linspace(-1, 1, 16)
    frequencies = np.random.default_rng(0).uniform(1, 6, (32, 1, 1, 3))
    waves = np.sin(frequencies * (x[:, None] + x[None])[None, ..., None])
    data = ((waves + 1) * 127).astype(np.uint8)

    def adam(updates_per_step):
        return optax.adam(2e-3, b1=0.5)

    def reconstruction(precision, steps=12):
        build = NetBuilder(
            shape=(16, 16, 3), latent_dim=8, family="resnet",
            net_args={"width": 4, "critic_width": 4, "blocks": 0}, batch_norm={},
            precision=precision,
        )  # fmt: skip
        spec = load("methods", "pm").Method().spec(build)
        state = jax.jit(partial(init_state, spec, adam))(jax.random.key(0))
        step = jax.jit(
            partial(train_step, spec=spec, optimizer=adam, ema_decay=0.9),
            compiler_options=QUICK_COMPILE,
        )
        history = []
        for index in range(steps):
            state, metrics = step(state, data[np.arange(8) + 8 * (index % 4)])
            history.append(float(metrics["recon"]))
        kept = jax.tree.leaves((state.params, state.stats))
        assert {leaf.dtype for leaf in kept} == {np.dtype(np.float32)}
        return np.array(history)

    single, half = reconstruction("float32"), reconstruction("bfloat16")
    np.testing.assert_allclose(half, single, rtol=0.02)
    assert single[-1] < single[0]
    assert np.any(half != single)


def test_three_batches_in_one_pass_as_on_tpus_are_those_one_by_one(monkeypatch):
    critic = mimicry.Critic(scale=1 / 32)
    batches = np.random.default_rng(0).normal(size=(3, 4, 32, 32, 3)).astype(np.float32)
    params, stats = jax.jit(partial(nets.init, critic))(jax.random.key(0), batches[0])
    passes, update = [], nets.update
    monkeypatch.setattr(
        nets, "update", lambda *args, **kwargs: passes.append(args) or update(*args, **kwargs)
    )

    def loss(params):
        bound = nets.BoundNet(critic, params, stats)
        outputs = bound.on_each(*batches)
        return sum(i * out.sum() for i, out in enumerate(outputs, 1)), (outputs, bound.stats)

    def found():  # each time another function, which JAX has to trace
        gradient = jax.jit(
            lambda params: jax.grad(loss, has_aux=True)(params), compiler_options=QUICK_COMPILE
        )
        return gradient(params)

    one_by_one = found()
    assert len(passes) == 3
    monkeypatch.setattr(collectives, "on_tpus", lambda: True)
    in_one = found()
    assert len(passes) == 4
    chex.assert_trees_all_close(in_one, one_by_one, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_generators_batch_norm_is_over_the_whole_batch_on_four_devices():
    z = np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)
    z[8:] += 2  # halves that differ, so that a device's own statistics would be wrong
    weight = np.random.default_rng(1).normal(size=(32, 32, 3)).astype(np.float32)

    def gradients(params, stats, z):
        def loss(params):
            images, after = nets.update(net, params, stats, z)
            return (images * weight).mean(), after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return collectives.mean((value, grads)), after

    net = mimicry.Decoder(shape=(32, 32, 3), scale=1 / 32)
    params, stats = jax.jit(partial(nets.init, net))(jax.random.key(0), z)
    compiled = partial(jax.jit, compiler_options=QUICK_COMPILE)
    expected = compiled(gradients)(params, stats, z)
    mesh = make_mesh(4)
    sharded = jax.device_put(z, NamedSharding(mesh, P(BATCH)))
    with jax.sharding.set_mesh(mesh):
        everywhere = replicate((params, stats), mesh)
        by_jit = compiled(gradients)(*everywhere, sharded)
    by_pmap = jax.pmap(
        gradients,
        axis_name=BATCH,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=jax.devices()[:4],
    )(params, stats, z.reshape(4, 4, 6))
    for found in (by_jit, by_pmap):
        chex.assert_trees_all_close(found, expected, rtol=1e-4, atol=1e-6)
