"""Adam with a learning-rate schedule for each objective, built from Optax's parts."""

import functools
from collections.abc import Callable

import optax
from ml_collections import ConfigDict

from pmjax import errors
from pmjax.errors import UserError
from pmjax.methods.base import Objective

# (updates in each step, *, b1) -> the transformation; without b1, the configured one.
Optimizer = Callable[..., optax.GradientTransformation]

_SCHEDULES = {
    "constant": lambda lr, updates: optax.constant_schedule(lr),
    "linear": lambda lr, updates: optax.linear_schedule(lr, 0.0, updates),
    "cosine": lambda lr, updates: optax.cosine_decay_schedule(lr, updates),
}


def make_optimizer(
    *,
    steps: int,
    learning_rate: float = 2e-4,
    b1: float = 0.0,
    b2: float = 0.9,
    schedule: str = "linear",
    warmup: int = 0,
    clip: float = 0.0,
    accumulate: int = 1,
) -> Optimizer:
    """Returns a function from an objective's updates in each step, and its own b1, to its Adam.

    Args:
      steps: training steps, after which 'linear' and 'cosine' reach zero.
      learning_rate: after the warm-up.
      b1: Adam's decay rate of the first moment.
      b2: Adam's decay rate of the second moment.
      schedule: 'constant', 'linear' or 'cosine'.
      warmup: steps over which the rate rises linearly from zero.
      clip: maximum global norm of a gradient (0: no clipping).
      accumulate: batches whose gradients are averaged for one update.

    Raises:
      UserError: for an unknown schedule, or an `accumulate` below 1.
    """
    if accumulate < 1:
        raise UserError(f"optimizer.accumulate={accumulate} must be at least 1.")
    if schedule not in _SCHEDULES:
        raise errors.unknown("schedule", schedule, _SCHEDULES)

    @functools.cache
    def optimizer(updates_per_step: int, *, b1: float = b1) -> optax.GradientTransformation:
        updates = steps * updates_per_step // accumulate
        rising = warmup * updates_per_step // accumulate
        rate = _SCHEDULES[schedule](learning_rate, max(1, updates - rising))
        if rising:
            rise = optax.linear_schedule(0.0, learning_rate, rising)
            rate = optax.join_schedules([rise, rate], [rising])
        adam = optax.adam(rate, b1=b1, b2=b2)
        adam = optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam
        if accumulate == 1:
            return adam
        return optax.MultiSteps(adam, accumulate).gradient_transformation()

    return optimizer


def stage1_optimizer(settings: ConfigDict) -> Optimizer:
    """Returns the optimizer of stage 1 that the config describes."""
    return make_optimizer(steps=settings.steps, **settings.optimizer)


def stage2_optimizer(settings: ConfigDict) -> Optimizer:
    """Returns the optimizer of stage 2 that the config describes."""
    return make_optimizer(steps=settings.stage2.steps, **settings.stage2.optimizer)


def for_objective(optimizer: Optimizer, objective: Objective) -> optax.GradientTransformation:
    """Returns an objective's transformation; its schedule counts the objective's updates."""
    own = {} if objective.b1 is None else {"b1": objective.b1}
    transformation = optimizer(objective.updates_per_step, **own)
    for net, factor in objective.relative_rates.items():
        only_net = {name: name == net for name in objective.nets}
        scaled = optax.masked(optax.scale(factor), only_net)
        transformation = optax.chain(transformation, scaled)
    return transformation
