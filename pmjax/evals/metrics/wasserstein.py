"""The exact 2-Wasserstein distance between generated and fresh real points."""

from collections.abc import Callable

import numpy as np

from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, lower
from pmjax.evals.context import Context

METRIC = Metric(
    Table(
        "w2",
        "2-Wasserstein distance",
        "How far generated points have to move to become fresh real ones; lower is better, and "
        "the floor is the distance between two sets of real points.",
        {"ratio": lower("the run's own prior over the floor; 1 is perfect")},
        better="lower",
        bars=True,
    ),
    needs_own_prior=True,
    least={"test": 2},
    limits={"draws": 1, "num": 1},
)


def evaluate(ctx: Context, *, draws: int = 5, num: int = 2000) -> dict[str, float]:
    """Returns W₂ between `num` samples and `num` fresh real points, the mean over `draws` draws.

    'w2/floor' is that of fresh points against other fresh ones. Real points come from `ctx.fresh`,
    or else from two random halves of the test set (then at most half of it each).
    """
    values = mean_distances(
        ctx, "wasserstein", draws, num, lambda points, real, _: wasserstein2(points, real)
    )
    values["ratio"] = values[ctx.own_prior] / values["floor"]
    return {f"w2/{name}": value for name, value in values.items()}


def mean_distances(
    ctx: Context,
    metric: str,
    draws: int,
    num: int,
    distance: Callable[[np.ndarray, np.ndarray, np.ndarray], float],
) -> dict[str, float]:
    """Returns the mean of distance(points, real, other real points) for each prior and 'floor'.

    Raises:
        UserError: for images.
    """
    ctx.require_points(metric)
    if ctx.fresh is None:
        num = min(num, len(ctx.test.data) // 2)
    found: dict[str, list[float]] = {name: [] for name in (*ctx.priors, "floor")}
    for draw in range(draws):
        real, other = real_points(ctx, num, draw)
        for name, values in found.items():
            points = other if name == "floor" else ctx.draw(name, num, draw)
            values.append(distance(points, real, other))
    return {name: float(np.mean(values)) for name, values in found.items()}


def wasserstein2(a: np.ndarray, b: np.ndarray) -> float:
    """Returns min over couplings of (E‖a - b‖²)^½ for two sets of points [N, D] and [M, D]."""
    import ot  # loads PyTorch, if it is installed

    mean = b.mean(0, dtype=np.float64)  # far from 0, ‖a‖² + ‖b‖² - 2ab would lose digits
    cost = ot.dist(a - mean, b - mean, metric="sqeuclidean")
    squared, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log["warning"]:
        raise UserError(f"The 2-Wasserstein distance did not converge: {log['warning']}.")
    return float(np.sqrt(max(squared, 0.0)))


def real_points(ctx: Context, num: int, draw: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns two independent sets [num, D] of real points; others for each draw."""
    if ctx.fresh is not None:
        seeds = (ctx.derived_seed("fresh", side, draw) for side in "ab")
        a, b = (np.asarray(ctx.fresh(num, seed), np.float32) for seed in seeds)
        return a, b
    rng = np.random.default_rng(ctx.derived_seed("halves", draw))
    order = rng.permutation(len(ctx.test.data))
    return ctx.test.data[order[:num]], ctx.test.data[order[num : 2 * num]]
