"""The Sinkhorn 2-Wasserstein distance between generated and fresh real points."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from sklearn.metrics import euclidean_distances

from pmjax.errors import UserError
from pmjax.evals.base import Metric, Table, option
from pmjax.evals.context import Context
from pmjax.evals.metrics.wasserstein import mean_distances

METRIC = Metric(
    Table(
        "sinkhorn",
        "Sinkhorn distance",
        "The 2-Wasserstein distance with an entropy term, debiased; lower is better.",
        better="lower",
        bars=True,
    ),
    least={"test": 2},
    limits={"draws": 1, "num": 1, "regularisation": 0.0},
)
MAX_ITERATIONS = 500
ON_FACTORS = 30  # further iterations on factors in each of those
TOLERANCE = 3e-3  # of the plan's marginals, in total variation
ANNEALING = 0.5  # of the regularization per iteration, starting at the largest cost


def evaluate(
    ctx: Context, *, draws: int = 5, num: int = 500, regularisation: float = 0.01
) -> dict[str, float]:
    """Returns the distances between `num` samples and `num` fresh real points, means over draws.

    'sinkhorn/<prior>' is each prior's, 'sinkhorn/floor' that of other real points, the same as
    in metric 'wasserstein'. ε is `regularisation` times the mean squared distance of real points.
    """

    def distance(points: np.ndarray, real: np.ndarray, other: np.ndarray) -> float:
        return sinkhorn2(points, real, epsilon=regularisation * float(_costs(real, other).mean()))

    values = mean_distances(ctx, "sinkhorn", draws, num, distance)
    return {f"sinkhorn/{name}": value for name, value in values.items()}


def sinkhorn2(a: np.ndarray, b: np.ndarray, *, epsilon: float) -> float:
    """Returns (OT_ε(a, b) - ½ OT_ε(a, a) - ½ OT_ε(b, b))^½ for points [N, D] and [M, D].

    The Sinkhorn divergence (Genevay et al., 2018; Feydy et al., 2019) with
    OT_ε = min over couplings P of E‖a - b‖² + ε KL(P, product): 0 for equal sets, not negative, and
    the exact distance for ε → 0.
    """
    costs = [transport_cost(x, y, epsilon=epsilon) for x, y in ((a, b), (a, a), (b, b))]
    return float(np.sqrt(max(costs[0] - (costs[1] + costs[2]) / 2, 0.0)))


def transport_cost(a: np.ndarray, b: np.ndarray, *, epsilon: float) -> float:
    """Returns OT_ε(a, b), found by Sinkhorn's iterations on logarithms."""
    cost, error, iterations = _sinkhorn(_costs(a, b), epsilon)
    if not error < TOLERANCE:
        raise UserError(
            f"Metric 'sinkhorn' did not converge in {int(iterations)} iterations: "
            f"set a larger {option('sinkhorn', 'regularisation')}."
        )
    return float(cost)


def _costs(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    mean = b.mean(0, dtype=np.float64)  # far from 0, ‖a‖² + ‖b‖² - 2ab would lose digits
    a, b = a - mean, b - mean
    return euclidean_distances(a, b, squared=True).astype(np.float32)


@jax.jit
def _sinkhorn(costs: jax.Array, epsilon: float) -> tuple[Any, ...]:
    """Returns the dual cost, the marginals' error and the iterations for costs [N, M].

    f_i = -ε log mean_j exp((g_j - C_ij) / ε), g likewise. Once ε is annealed, most iterations
    update factors u and v of the kernel exp((f_i + g_j - C_ij) / ε), by products of a matrix and a
    vector; f and g absorb u and v before they overflow.
    """

    def potential(other, costs, epsilon):
        return -epsilon * (logsumexp((other - costs) / epsilon, axis=1) - jnp.log(len(other)))

    def unfinished(state):
        _, _, scale, error, iteration = state
        return ((scale > epsilon) | (error > TOLERANCE)) & (iteration < MAX_ITERATIONS)

    def turn(state):
        f, g, scale, _, iteration = state
        scale = jnp.maximum(scale * ANNEALING, epsilon)
        g = potential(f, costs.T, scale)
        new = potential(g, costs, scale)
        error = jnp.abs(jnp.expm1((f - new) / scale)).mean()  # of the rows of f and g's plan
        kernel = jnp.exp((new[:, None] + g - costs) / scale)

        def factors(_, uv):
            v = 1 / (uv[0] @ kernel / costs.shape[0])
            return 1 / (kernel @ v / costs.shape[1]), v

        u, v = jnp.ones_like(new), jnp.ones_like(g)
        u, v = jax.lax.fori_loop(0, jnp.where(scale > epsilon, 0, ON_FACTORS), factors, (u, v))
        f, g = new + scale * jnp.log(u), g + scale * jnp.log(v)
        return f, g, scale, error, iteration + 1

    start = (jnp.zeros(costs.shape[0]), jnp.zeros(costs.shape[1]), costs.max(), jnp.inf, 0)
    f, g, _, error, iterations = jax.lax.while_loop(unfinished, turn, start)
    g = potential(f, costs.T, epsilon)
    return f.mean() + g.mean(), error, iterations
