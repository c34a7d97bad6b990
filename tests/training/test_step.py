"""The training step: which nets it updates, and the same result on any number of devices."""

import dataclasses
from functools import cache, partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pmjax import plugins
from pmjax.datasets.batches import to_float
from pmjax.distributed.compile import compile_step
from pmjax.distributed.mesh import make_mesh, replicate
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, NetBuilder, Objective, combine
from pmjax.nets.base import Net, Nets, family
from pmjax.nets.layers import LatentBatchNorm
from pmjax.priors import base as priors
from pmjax.training.step import init_state, train_step

BATCH = 32
NET_ARGS = {"mlp": {"width": 16}, "resnet": {"width": 4, "critic_width": 4, "blocks": 0}}


def sgd(repeats):
    return optax.sgd(0.05)


def builder(family="mlp"):
    return NetBuilder(
        shape=(8, 8, 1),
        latent_dim=6,
        family=family,
        net_args=NET_ARGS[family],
        batch_norm={"momentum": 0.9},
    )


def method_spec(name, family="mlp"):
    return plugins.load("methods", name).Method().spec(builder(family))


def latent_spec():
    return priors.make("latent_gan", {"width": 16}).spec(6)


def joint_spec():
    return combine(method_spec("pm"), latent_spec(), averaged=("G", "g"))


SPECS = {
    "pm": partial(method_spec, "pm"),  # the others are in test_methods.py
    "latent_gan": latent_spec,
    "joint": joint_spec,
    "pm_resnet": partial(method_spec, "pm", family="resnet"),
}


@pytest.fixture(scope="module")
def batches():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3, BATCH, 8, 8, 1), dtype=np.uint8)
    latents = rng.normal(size=(3, BATCH, 6)).astype(np.float32)
    return {name: latents if name == "latent_gan" else images for name in SPECS}


def init(spec, seed=0):
    return init_state(spec, sgd, jax.random.key(seed))


def step_of(spec, ema_decay=0.9):
    return partial(train_step, spec=spec, optimizer=sgd, ema_decay=ema_decay)


def run(spec, xs, *, mode="jit", devices=1, per_dispatch=1):
    mesh = make_mesh(devices)
    compiled = compile_step(step_of(spec), mode=mode, mesh=mesh, gather=False)
    state = replicate(jax.jit(partial(init_state, spec, sgd))(jax.random.key(1)), mesh)
    for start in range(0, len(xs), per_dispatch):
        state, metrics = compiled(state, None, xs[start : start + per_dispatch])
    return jax.device_get((state.replace(key=jax.random.key_data(state.key)), metrics))


@pytest.mark.parametrize("name", SPECS)
def test_each_objective_updates_its_own_nets_and_no_others(name, batches):
    spec = SPECS[name]()
    for objective in spec.objectives:
        alone = dataclasses.replace(spec, objectives=(objective,), averaged=())
        state = init(alone)
        after, _ = jax.jit(step_of(alone))(state, batches[name][0])
        for net in spec.nets:
            changed = not jax.tree.all(
                jax.tree.map(lambda a, b: (a == b).all(), state.params[net], after.params[net])
            )
            assert changed == (net in objective.nets), (objective.name, net)


@pytest.fixture(scope="module")
def undivided(batches):
    return cache(lambda name: run(SPECS[name](), batches[name]))


LONG = [("joint", 1), ("joint", 4), ("joint", 8), ("pm_resnet", 1), ("pm_resnet", 8)]
DIVISIONS = [
    pytest.param(
        name,
        mode,
        devices,
        marks=[pytest.mark.slow] if (name, devices) in LONG else [],
    )
    for name in SPECS
    for mode, devices in [("jit", 4), ("jit", 8), ("pmap", 1), ("pmap", 4)]
]


@pytest.mark.parametrize("name, mode, devices", DIVISIONS)
def test_division_over_devices_changes_nothing(name, mode, devices, batches, undivided):
    one, metrics = undivided(name)
    many, metrics_of_many = run(SPECS[name](), batches[name], mode=mode, devices=devices)
    chex.assert_trees_all_close(metrics_of_many, metrics, rtol=2e-4, atol=2e-5)
    for part in ("params", "stats", "ema"):
        chex.assert_trees_all_close(getattr(many, part), getattr(one, part), rtol=2e-4, atol=2e-6)


def test_several_steps_in_one_dispatch_equal_single_ones(batches):
    one, _ = run(latent_spec(), batches["latent_gan"])
    three, _ = run(latent_spec(), batches["latent_gan"], per_dispatch=3)
    chex.assert_trees_all_close(three.params, one.params, rtol=1e-5, atol=1e-6)


def test_gradient_through_the_shared_pass_is_the_whole_gradient(batches):
    spec = method_spec("pm")
    objective = spec.objectives[-1]
    alone = dataclasses.replace(spec, objectives=(objective,))
    state = init(alone)
    after, _ = jax.jit(step_of(alone))(state, batches["pm"][0])
    key = jax.random.fold_in(state.key, 0)

    def loss(moving):
        bound = Nets(spec.nets, state.params | moving, state.stats)
        shared = spec.forward(bound, to_float(batches["pm"][0]), jax.random.fold_in(key, 0))
        return objective.loss(bound, SimpleNamespace(**shared), jax.random.fold_in(key, 1))[0]

    grads = jax.grad(loss)({net: state.params[net] for net in objective.nets})
    changes = jax.tree.map(
        lambda a, b: (a - b) / 0.05,
        {n: state.params[n] for n in grads},
        {n: after.params[n] for n in grads},
    )
    chex.assert_trees_all_close(changes, grads, rtol=1e-3, atol=1e-5)


def test_values_of_the_shared_pass_that_no_loss_uses_cost_nothing(batches):
    spec = method_spec("pm")

    def with_more(nets, x, key):
        shared = spec.forward(nets, x, key)
        return shared | {"more": nets.d(-shared["x_hat"], update_stats=False)}

    def flops(spec):
        state = jax.eval_shape(partial(init, spec))
        step = jax.jit(step_of(spec))
        return step.lower(state, batches["pm"][0]).compile().cost_analysis()["flops"]

    assert flops(dataclasses.replace(spec, forward=with_more)) == flops(spec)


def linear_spec(loss, forward=lambda nets, x, key: {"z": x}, updates="w", shared_nets=(), **args):
    linear = Net(family("mlp").Critic(width=2, layers=0), (1,))
    objective = Objective("p", (updates,), loss, **args)
    return MethodSpec({"w": linear}, forward, shared_nets=shared_nets, objectives=(objective,))


def test_an_objective_makes_its_updates_per_step():
    def loss(nets, s, key):
        return jnp.sum(nets.w.params["MLP_0"]["Dense_0"]["kernel"]) * jnp.mean(s.z), {}

    spec = linear_spec(loss, updates_per_step=3)
    state = init(spec)
    after, _ = step_of(spec)(state, jnp.ones((2, 1)))
    before = state.params["w"]["MLP_0"]["Dense_0"]["kernel"]
    change = before - after.params["w"]["MLP_0"]["Dense_0"]["kernel"]
    np.testing.assert_allclose(change, 3 * 0.05, rtol=1e-5)


@pytest.mark.parametrize("error, message, loss, args", [
    (UserError, "must return .loss, metrics.", lambda nets, s, key: s.z.mean(), {}),
    (UserError, r"'p' has shape \(2, 1\): return a scalar", lambda nets, s, key: (s.z, {}), {}),
    (AttributeError, "returned no 'x_hat', only .'z'.", lambda nets, s, key: (s.x_hat, {}), {}),
    (UserError, r"calls \['w'\], which objective 'p' updates: add to shared_nets, now \[\]",
     lambda nets, s, key: (s.z.mean(), {}), {"forward": lambda nets, x, key: {"z": nets.w(x)}}),
    (UserError, "Unknown net in objective 'p': 'W'. .*Valid: w", None, {"updates": "W"}),
    (UserError, "Unknown net in shared_nets: 'E'. Valid: w", None, {"shared_nets": ("E",)}),
])  # fmt: skip
def test_a_mistake_in_a_method_is_named(error, message, loss, args):
    with pytest.raises(error, match=message):
        spec = linear_spec(loss, **args)
        step_of(spec)(init(spec), jnp.ones((2, 1)))


def test_average_follows_its_definition(batches):
    spec = latent_spec()
    state = init(spec)
    expected = state.params["g"]
    for step, batch in enumerate(batches["latent_gan"]):
        state, _ = step_of(spec, ema_decay=0.15)(state, batch)
        decay = min(0.15, (1 + step) / (10 + step))
        expected = jax.tree.map(
            lambda e, p, decay=decay: decay * e + (1 - decay) * p, expected, state.params["g"]
        )
    chex.assert_trees_all_close(state.ema["g"], expected, rtol=1e-5, atol=1e-6)


def test_running_statistics_are_those_of_real_data_alone(batches):
    spec = method_spec("pm")
    state = init(spec)
    after, _ = jax.jit(step_of(spec))(state, batches["pm"][0])
    trunk = spec.nets["E"].module.trunk
    x = batches["pm"][0] / 127.5 - 1
    raw = trunk.apply({"params": state.params["E"]["trunk"]}, x, train=True)
    running = after.stats["E"]["batch_stats"]["norm"]["BatchNorm_0"]
    np.testing.assert_allclose(running["mean"], 0.1 * raw.mean(0), atol=1e-5)
    np.testing.assert_allclose(running["var"], 0.9 + 0.1 * raw.var(0), rtol=1e-4)


def test_latent_batch_norm_standardizes_each_coordinate():
    z = 3 + 2 * jax.random.normal(jax.random.key(0), (512, 5))
    norm = LatentBatchNorm()
    variables = norm.init(jax.random.key(0), z, train=True)
    assert "params" not in variables
    out, _ = norm.apply(variables, z, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(out.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(out.var(0), 1, atol=1e-4)


def test_same_seed_gives_the_same_bits(batches):
    first, _ = run(joint_spec(), batches["joint"])
    second, _ = run(joint_spec(), batches["joint"])
    chex.assert_trees_all_equal(first, second)


def test_a_joint_prior_uses_the_configured_momentum():
    prior = priors.make("realnvp", {"b1": 0.7}).spec(6)
    assert [objective.b1 for objective in prior.objectives] == [0.7]
    joint = combine(method_spec("pm"), prior, averaged=("G", "f"))
    assert [objective.name for objective in joint.objectives] == ["critic", "autoencoder", "prior"]
    assert joint.objectives[-1].b1 is None
