"""Trains a prior in a moment, for tests."""

import functools

import jax
import numpy as np

from pmjax.datasets.batches import batch_indices
from pmjax.distributed.compile import compile_step
from pmjax.distributed.mesh import make_mesh, replicate
from pmjax.methods.base import MethodSpec
from pmjax.priors.base import BasePrior, TrainedPrior
from pmjax.training.optimizers import Optimizer, make_optimizer
from pmjax.training.step import TrainState, init_state, train_step


def fit(prior: TrainedPrior, z: np.ndarray, steps: int, batch_size: int = 64, **optimizer):
    """Trains a prior in one dispatch; returns the arrays that `sample` takes."""
    args = {"learning_rate": 2e-3, "b1": 0.0, "b2": 0.99}
    make = make_optimizer(steps=steps, **args | optimizer)
    spec = prior.init_from_embeddings(prior.spec(z.shape[1]), z, seed=0)
    step = functools.partial(train_step, spec=spec, optimizer=make, ema_decay=0.99)
    mesh = make_mesh(1)
    run = compile_step(step, mode="jit", mesh=mesh, gather=True)
    rows = [batch_indices(len(z), batch_size, i, seed=0) for i in range(steps)]
    state, _ = run(replicate(start(spec, make), mesh), replicate(z, mesh), np.stack(rows))
    return jax.device_get(prior.export(state.params | state.ema, state.stats))


def start(spec: MethodSpec, optimizer: Optimizer | None = None) -> TrainState:
    """Returns the state before the first step."""
    make = optimizer or make_optimizer(steps=1)
    return jax.jit(lambda: init_state(spec, make, jax.random.key(0)))()


def draw(prior: BasePrior, arrays, seed: int, num: int) -> np.ndarray:
    """Returns compiled draws of a prior."""
    return np.asarray(jax.jit(prior.sample, static_argnums=2)(arrays, jax.random.key(seed), num))
