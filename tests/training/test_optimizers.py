"""Optimizers: the learning rate of each update."""

import numpy as np
import optax
import pytest

from pmjax.errors import UserError
from pmjax.methods.base import Objective
from pmjax.training.optimizers import for_objective, make_optimizer


def rates(updates, repeats=1, **args):
    """Adam moves a parameter with a constant gradient by its learning rate."""
    optimizer = make_optimizer(b1=0.0, b2=0.0, learning_rate=0.1, **args)(repeats)
    state = optimizer.init(np.float32(0))
    moves = []
    for _ in range(updates):
        move, state = optimizer.update(np.float32(1), state)
        moves.append(-float(move))
    return moves


@pytest.mark.parametrize(
    "schedule, expected",
    [
        ("constant", [0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.075, 0.05, 0.025]),
        ("cosine", list(0.05 * (1 + np.cos(np.pi * np.arange(4) / 4)))),
    ],
)
def test_schedules_reach_zero_after_the_last_step(schedule, expected):
    np.testing.assert_allclose(rates(4, steps=4, schedule=schedule), expected, rtol=1e-4)


def test_warm_up_rises_linearly_before_the_schedule():
    expected = [0.0, 0.05, 0.1, 0.075, 0.05, 0.025]
    np.testing.assert_allclose(
        rates(6, steps=6, warmup=2, schedule="linear"), expected, rtol=1e-4, atol=1e-8
    )


def test_schedules_count_steps_and_not_an_objective_s_updates():
    expected = [0.1, 0.0875, 0.075, 0.0625]
    np.testing.assert_allclose(rates(4, repeats=2, steps=4, schedule="linear"), expected, rtol=1e-4)


def test_clipping_bounds_the_gradient_that_adam_sees():
    clipped = make_optimizer(steps=1, learning_rate=0.1, b1=0.9, schedule="constant", clip=0.5)(1)
    gradient = {"a": np.float32(3), "b": np.float32(4)}
    _, state = clipped.update(gradient, clipped.init(gradient))
    mean = optax.tree.get(state, "mu")
    np.testing.assert_allclose([mean["a"], mean["b"]], 0.1 * np.array([0.3, 0.4]), rtol=1e-5)


def test_an_unknown_schedule_gets_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'cosine'"):
        make_optimizer(steps=1, schedule="cosin")


def test_accumulation_moves_once_in_so_many_batches_along_the_schedule_of_updates():
    found = rates(4, steps=4, schedule="linear", accumulate=2)
    np.testing.assert_allclose(found, [0.0, 0.1, 0.0, 0.05], rtol=1e-4)


def test_accumulation_averages_the_gradients_that_adam_sees():
    optimizer = make_optimizer(steps=2, learning_rate=0.1, b1=0.9, accumulate=2)(1)
    state = optimizer.init(np.float32(0))
    for gradient in (1.0, 3.0):
        _, state = optimizer.update(np.float32(gradient), state)
    np.testing.assert_allclose(optax.tree.get(state, "mu"), 0.1 * 2.0, rtol=1e-5)


def test_accumulation_below_one_is_refused():
    with pytest.raises(UserError, match="accumulate=0 must be at least 1"):
        make_optimizer(steps=1, accumulate=0)


def test_an_objective_s_own_momentum_replaces_the_configured_one():
    """Without momentum Adam follows the newest gradient's sign; with it, the average's."""
    optimizer = make_optimizer(steps=9, b1=0.9, b2=0.0, learning_rate=0.1, schedule="constant")
    for own, expected in (({}, -0.1 * (0.1 - 0.09) / (1 - 0.81)), ({"b1": 0.0}, -0.1)):
        adam = for_objective(optimizer, Objective("all", ("net",), None, **own))
        _, state = adam.update(np.float32(-1), adam.init(np.float32(0)))
        move, _ = adam.update(np.float32(1), state)
        np.testing.assert_allclose(move, expected, rtol=1e-4)


def test_relative_rates_scale_the_updates_of_single_nets():
    optimizer = make_optimizer(steps=9, learning_rate=0.1, schedule="constant")
    params = {"F": np.float32(0), "G": np.float32(0)}
    changes = []
    for rates in ({}, {"F": 0.01}):
        objective = Objective("generator", ("F", "G"), None, relative_rates=rates)
        adam = for_objective(optimizer, objective)
        changes.append(adam.update({"F": np.float32(3), "G": np.float32(3)}, adam.init(params))[0])
    same, scaled = changes
    np.testing.assert_allclose(scaled["F"], 0.01 * same["F"], rtol=1e-6)
    assert scaled["G"] == same["G"] == same["F"]
