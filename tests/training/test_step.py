"""The training step: who moves what, and that division over devices changes nothing."""

import dataclasses
from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pmjax import plugins
from pmjax.distributed import collectives
from pmjax.distributed.compile import compile_step
from pmjax.distributed.mesh import make_mesh, replicate
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, combine
from pmjax.nets import base as nets
from pmjax.nets.layers import LatentBatchNorm
from pmjax.priors import base as priors
from pmjax.training.step import init_state, train_step

BATCH = 32
NET_ARGS = {"mlp": {"width": 16}, "resnet": {"width": 4, "critic_width": 4, "blocks": 0}}


def sgd(repeats):
    return optax.sgd(0.05)


def plan(axis=None, family="mlp"):
    return NetBuilder(
        shape=(8, 8, 1),
        latent_dim=6,
        family=family,
        net_args=NET_ARGS[family],
        batch_norm={"momentum": 0.9},
        optimizer=sgd,
        axis=axis,
    )


def method_game(name, axis=None, family="mlp"):
    return plugins.load("methods", name).Method().game(plan(axis, family))


def latent_game(axis=None):
    return priors.make("latent_gan", {"width": 16}).game(6, sgd, axis)


def joint_game(axis=None):
    return combine(method_game("pm", axis), latent_game(axis), averaged=("G", "g"))


GAMES = {
    "pm": partial(method_game, "pm"),  # the others are in test_methods.py
    "latent_gan": latent_game,
    "joint": joint_game,
    "pm_resnet": partial(method_game, "pm", family="resnet"),
}


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, BATCH, 8, 8, 1), dtype=np.uint8)
    latents = rng.normal(size=(3, BATCH, 6)).astype(np.float32)
    return {name: latents if name == "latent_gan" else images for name in GAMES}


def run(game, xs, *, mode="jit", devices=1, per_dispatch=1):
    mesh = make_mesh(devices)
    step = partial(train_step, game=game, ema_decay=0.9, axis=collectives.batch_axis(mode))
    compiled = compile_step(step, mode=mode, mesh=mesh, gather=False)
    state = replicate(jax.jit(partial(init_state, game))(jax.random.key(1)), mesh)
    for start in range(0, len(xs), per_dispatch):
        state, metrics = compiled(state, None, xs[start : start + per_dispatch])
    return jax.device_get((state.replace(key=jax.random.key_data(state.key)), metrics))


@pytest.mark.parametrize("name", GAMES)
def test_each_objective_moves_its_own_nets_and_no_others(name, batches):
    game = GAMES[name]()
    for objective in game.objectives:
        alone = MethodSpec(game.nets, game.forward, game.shared_nets, (objective,))
        state = init_state(alone, jax.random.key(0))
        after, _ = jax.jit(partial(train_step, game=alone, ema_decay=0.9))(state, batches[name][0])
        for net in game.nets:
            moved = not jax.tree.all(
                jax.tree.map(lambda a, b: (a == b).all(), state.params[net], after.params[net])
            )
            assert moved == (net in objective.nets), (objective.name, net)


@pytest.fixture(scope="module")
def undivided(batches):
    return cache(lambda name: run(GAMES[name](), batches[name]))


DIVISIONS = [("jit", 4), ("jit", 8), ("pmap", 1), ("pmap", 4)]


@pytest.mark.parametrize("name", GAMES)
@pytest.mark.parametrize("mode, devices", DIVISIONS)
def test_division_over_devices_changes_nothing(name, mode, devices, batches, undivided):
    one, metrics = undivided(name)
    axis = collectives.batch_axis(mode)
    many, metrics_of_many = run(GAMES[name](axis), batches[name], mode=mode, devices=devices)
    chex.assert_trees_all_close(metrics_of_many, metrics, rtol=2e-4, atol=2e-5)
    for part in ("params", "stats", "ema"):
        chex.assert_trees_all_close(getattr(many, part), getattr(one, part), rtol=2e-4, atol=2e-6)


def test_several_steps_in_one_dispatch_equal_single_ones(batches):
    one, _ = run(latent_game(), batches["latent_gan"])
    three, _ = run(latent_game(), batches["latent_gan"], per_dispatch=3)
    chex.assert_trees_all_close(three.params, one.params, rtol=1e-5, atol=1e-6)


def test_gradient_through_the_shared_pass_is_the_whole_gradient(batches):
    game = method_game("pm")
    objective = game.objectives[-1]
    alone = MethodSpec(game.nets, game.forward, game.shared_nets, (objective,))
    state = init_state(alone, jax.random.key(0))
    after, _ = jax.jit(partial(train_step, game=alone, ema_decay=0.9))(state, batches["pm"][0])
    key = jax.random.fold_in(state.key, 0)

    def loss(moving):
        params = state.params | moving
        shared, stats = game.forward(
            params, state.stats, batches["pm"][0], jax.random.fold_in(key, 0)
        )
        return objective.loss(params, stats, shared, jax.random.fold_in(key, 1))[0]

    grads = jax.grad(loss)({net: state.params[net] for net in objective.nets})
    moved = jax.tree.map(
        lambda a, b: (a - b) / 0.05,
        {n: state.params[n] for n in grads},
        {n: after.params[n] for n in grads},
    )
    chex.assert_trees_all_close(moved, grads, rtol=1e-3, atol=1e-5)


def test_what_no_loss_takes_from_the_shared_pass_costs_nothing(batches):
    game = method_game("pm")

    def with_more(params, stats, batch, key):
        shared, moved = game.forward(params, stats, batch, key)
        x, d = -shared["x_hat"], game.nets["d"][0]
        more = nets.apply(d, params["d"], stats["d"], x, train=True)
        return shared | {"more": more}, moved

    def flops(game):
        state = jax.eval_shape(partial(init_state, game), jax.random.key(0))
        step = jax.jit(partial(train_step, game=game, ema_decay=0.9))
        return step.lower(state, batches["pm"][0]).compile().cost_analysis()["flops"]

    assert flops(dataclasses.replace(game, forward=with_more)) == flops(game)


def test_repeats_make_that_many_updates():
    def loss(params, stats, shared, key):
        return jnp.sum(params["w"]["kernel"]) * jnp.mean(shared["z"]), ({}, stats)

    linear = nets.family("mlp").Critic(width=2, layers=0)
    game = MethodSpec(
        {"w": (linear, (1,))},
        lambda params, stats, batch, key: ({"z": batch}, stats),
        (),
        (
            Objective(
                "p",
                ("w",),
                lambda p, s, sh, k: loss({"w": p["w"]["MLP_0"]["Dense_0"]}, s, sh, k),
                sgd,
                updates_per_step=3,
            ),
        ),
    )
    state = init_state(game, jax.random.key(0))
    after, _ = train_step(state, jnp.ones((2, 1)), game=game, ema_decay=0.9)
    before = state.params["w"]["MLP_0"]["Dense_0"]["kernel"]
    moved = before - after.params["w"]["MLP_0"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(moved, 3 * 0.05, rtol=1e-5)


def test_average_follows_its_definition(batches):
    game = latent_game()
    state = init_state(game, jax.random.key(0))
    expected = state.params["g"]
    for step, batch in enumerate(batches["latent_gan"]):
        state, _ = train_step(state, batch, game=game, ema_decay=0.15)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda e, p, decay=decay: decay * e + (1 - decay) * p, expected, state.params["g"]
        )
    chex.assert_trees_all_close(state.ema["g"], expected, rtol=1e-5, atol=1e-6)


def test_running_statistics_are_those_of_real_data_alone(batches):
    game = method_game("pm")
    state = init_state(game, jax.random.key(0))
    after, _ = jax.jit(partial(train_step, game=game, ema_decay=0.9))(state, batches["pm"][0])
    trunk = game.nets["E"][0].trunk
    x = batches["pm"][0] / 127.5 - 1
    raw = trunk.apply({"params": state.params["E"]["trunk"]}, x, train=True)
    running = after.stats["E"]["batch_stats"]["norm"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * raw.mean(0), atol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * raw.var(0), rtol=1e-4)


def test_latent_batch_norm_standardises_each_coordinate():
    z = 3 + 2 * jax.random.normal(jax.random.key(0), (512, 5))
    norm = LatentBatchNorm()
    variables = norm.init(jax.random.key(0), z, train=True)
    assert "params" not in variables
    out, _ = norm.apply(variables, z, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(0), 1, atol=1e-4)


def test_same_seed_gives_the_same_bits(batches):
    first, _ = run(joint_game(), batches["joint"])
    second, _ = run(joint_game(), batches["joint"])
    chex.assert_trees_all_equal(first, second)
