"""The shared forward pass: the gradients of plain JAX, and no second run of the pass."""

import doctest

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pmjax.training import shared_forward
from pmjax.training.shared_forward import value_and_grad

PARAMS = {"E": np.float32(0.7), "G": np.float32(-1.3), "d": np.float32(2.0)}


def test_the_example_in_the_docstring():
    results = doctest.testmod(shared_forward)
    assert results.attempted > 3 and not results.failed


def forward(params):
    z = jnp.tanh(params["E"])
    return {"z": z, "x_hat": jnp.sin(params["G"] * z)}


def loss(params, s):
    return jnp.exp(params["d"] * s["x_hat"]) + params["G"] * s["z"] ** 2, s["z"]


@pytest.mark.parametrize("names", ["d", "G", "E", "EG", "EGd"])
def test_gradients_are_those_of_the_whole_function(names):
    shared, aux = shared_forward.linearize_forward(
        lambda trainable: (forward(PARAMS | trainable), "aux"), {n: PARAMS[n] for n in "EG"}
    )
    assert aux == "aux"
    trainable = {name: PARAMS[name] for name in names}
    found = value_and_grad(lambda m, s: loss(PARAMS | m, s), shared, has_aux=True)(trainable)

    def whole(trainable):
        params = PARAMS | trainable
        return loss(params, forward(params))

    expected = jax.value_and_grad(whole, has_aux=True)(trainable)
    chex.assert_trees_all_close(found, expected, rtol=1e-6)
    value, grads = value_and_grad(lambda m, s: loss(PARAMS | m, s)[0], shared)(trainable)
    chex.assert_trees_all_equal(((value, found[0][1]), grads), found)


def test_two_losses_run_the_pass_once():
    runs = []

    def counted(trainable):
        runs.append(trainable)
        return forward(PARAMS | trainable), None

    shared, _ = shared_forward.linearize_forward(counted, {n: PARAMS[n] for n in "EG"})
    for names in ("d", "EG"):
        trainable = {name: PARAMS[name] for name in names}
        value_and_grad(lambda m, s: loss(PARAMS | m, s), shared, has_aux=True)(trainable)
    assert len(runs) == 1
