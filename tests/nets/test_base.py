"""Nets bound to their parameters and statistics: which call changes what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pmjax import plugins
from pmjax.nets import base as nets
from pmjax.nets.heads import Embedding, Posterior
from pmjax.nets.layers import LatentBatchNorm

X = np.random.default_rng(0).normal(3, 2, (2, 8, 4)).astype(np.float32)


@pytest.fixture
def bound():
    """E with a BatchNorm, of momentum one half, after a linear layer."""
    trunk = nets.family("mlp").Encoder(3, layers=0)
    E = nets.Net(Embedding(trunk, LatentBatchNorm(momentum=0.5)), (4,))
    params, stats = nets.init(E.module, jax.random.key(0), X[0])
    return nets.Nets({"E": E}, {"E": params}, {"E": stats})


def running_mean(net):
    return np.asarray(net.stats["batch_stats"]["norm"]["BatchNorm_0"]["mean"])


def linear(net, x):
    layer = net.params["trunk"]["MLP_0"]["Dense_0"]
    return x @ layer["kernel"] + layer["bias"]


def test_each_call_continues_from_the_recorded_statistics(bound):
    first, second = (linear(bound.E, x).mean(0) for x in X)
    bound.E(X[0])
    np.testing.assert_allclose(running_mean(bound.E), first / 2, rtol=1e-5)
    bound.E(X[1])
    np.testing.assert_allclose(running_mean(bound.E), first / 4 + second / 2, rtol=1e-5)
    np.testing.assert_array_equal(
        bound.stats["E"]["batch_stats"]["norm"]["BatchNorm_0"]["mean"], running_mean(bound.E)
    )


def test_a_call_without_update_sees_the_initial_statistics_and_records_none():
    critic = plugins.load("nets", "mimicry").Critic(scale=1 / 64)
    images = np.random.default_rng(0).normal(size=(4, 32, 32, 1)).astype(np.float32)
    params, stats = nets.init(critic, jax.random.key(0), images)
    stats = jax.tree.map(lambda leaf: leaf + 0.1, stats)  # so that one power iteration matters
    d = nets.BoundNet(critic, params, stats)
    before = d(images, update_stats=False)
    assert d.stats is stats
    recorded = d(images)
    np.testing.assert_array_equal(recorded, before)
    after = d.stats
    np.testing.assert_array_equal(d(images, update_stats=False), before)
    assert d.stats is after
    assert not np.array_equal(d(images), before)


def test_a_method_of_the_module_is_called_by_its_name():
    module = Posterior(nets.family("mlp").Encoder(6, width=8))
    params, stats = nets.init(module, jax.random.key(0), X[0])
    E = nets.BoundNet(module, params, stats)
    mean, log_variance = E.posterior(X[0])
    np.testing.assert_array_equal(E(X[0]), mean)
    assert log_variance.shape == mean.shape == (8, 3)


def test_unknown_nets_and_methods_are_named(bound):
    with pytest.raises(AttributeError, match="no net 'F', only"):
        _ = bound.F
    with pytest.raises(AttributeError, match="posteriors"):
        _ = bound.E.posteriors


def test_only_families_critics_declare_that_they_accept_several_batches():
    found = {name: nets.family(name).Critic.supports_multi_batch for name in plugins.names("nets")}
    assert found == {"mlp": False, "mimicry": True, "resnet": False}
    assert all(issubclass(nets.family(name).Critic, nets.Critic) for name in found)


def test_calls_inside_a_gradient_leave_no_tracer_behind(bound):
    jax.grad(lambda x: jnp.sum(bound.E(x, update_stats=False)))(X[0])
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(bound.stats))
    np.testing.assert_array_equal(running_mean(bound.E), 0)
