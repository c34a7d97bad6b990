"""Optimizers and learning-rate schedules, all of them Optax's."""

import functools
from collections.abc import Callable

import optax

from pmjax import errors
from pmjax.errors import UserError

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
) -> Callable[..., optax.GradientTransformation]:
    """Returns a function from a objective's repeats in a step, and its own `b1` or not, to its Adam.

    Args:
      steps: training steps, after which 'linear' and 'cosine' reach zero.
      learning_rate: after the warm-up.
      b1: Adam's decay of the gradients' average.
      b2: Adam's decay of the squared gradients' average.
      schedule: 'constant', 'linear' or 'cosine'.
      warmup: steps over which the rate grows linearly from zero.
      clip: largest global norm of a gradient (0: any).
      accumulate: batches of which the gradients are averaged for one update.

    Raises:
      UserError: for an unknown schedule, or an `accumulate` below 1.
    """
    if accumulate < 1:
        raise UserError(f"optimizer.accumulate={accumulate} must be at least 1.")
    if schedule not in _SCHEDULES:
        raise errors.unknown("schedule", schedule, _SCHEDULES)

    @functools.cache
    def optimizer(repeats: int, *, b1: float = b1) -> optax.GradientTransformation:
        updates, rising = steps * repeats // accumulate, warmup * repeats // accumulate
        rate = _SCHEDULES[schedule](learning_rate, max(1, updates - rising))
        if rising:
            before = optax.linear_schedule(0.0, learning_rate, rising)
            rate = optax.join_schedules([before, rate], [rising])
        adam = optax.adam(rate, b1=b1, b2=b2)
        adam = optax.chain(optax.clip_by_global_norm(clip), adam) if clip else adam
        if accumulate == 1:
            return adam
        return optax.MultiSteps(adam, accumulate).gradient_transformation()

    return optimizer
