"""Propositions 1 and 2 and Figure 1: reconstruction against KL divergence in one dimension.

    python -m pmjax.reproduce theory --workdir=runs/reproduce/theory

Half a minute on one CPU core, for three seeds.

x is uniform on [-1, 1], p(z) = N(0, 1), and p(x|z) is a Gaussian around G(z). The VAE's optimum
depends on the decoder's variance σ² and on β only through v = βσ²: it minimizes
E(x - G(z))² + 2v E KL.

- Linear nets (`linear`): the optimum in closed form. For v ≥ Var x, KL = 0 for every x and
  G(z) = E x for every z: Proposition 1. For v → 0, it reconstructs and sup_x KL → ∞.
- Perceptrons (`optimize`): the same without the restriction to linear maps.
- Intervals (`disjoint`): posteriors with finite and disjoint supports, as in Figure 1. Each of K
  posteriors has 1/K of the prior, so KL = ln K; no finite K suffices for a continuum of x.
- The bound (`bound`): KL ≥ mutual information ≥ rate-distortion function ≥ Shannon's lower bound,
  ln 2 - ½ ln(2πe·MSE), for any encoder and decoder. It is unbounded as MSE → 0, which is
  Proposition 2 for squared error.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy import stats

from pmjax.reporting import plots
from pmjax.reporting.images import Figure
from pmjax.reproductions.base import Column, Reproduction, Row, Study, Table

Array = jax.Array

VARIANCE = 1 / 3  # of x
LEVELS = (1.0, 1 / 3, 0.2, 0.1, 0.05, 0.02, 0.01, 0.003, 0.001, 0.0003)  # v
STEPS, RUNLOCAL_STEPS = 4000, 200
STRATA, NOISES, WIDTH = 64, 4, 32  # x per batch, draws of noise per x, units per layer
BLUE, RED, GREEN, GRAY = plots.BLUE, "#c8452f", "#2f8f4e", "#8a9099"


def gaussian_kl(mean: Any, variance: Any) -> Any:
    """Returns KL[N(mean, variance) ‖ N(0, 1)] in nats, elementwise."""
    return (mean**2 + variance - 1 - np.log(variance)) / 2


def linear(v: float) -> dict[str, float]:
    """Returns the optimum among linear nets: z ~ N(a·x, s²), G(z) = w·z.

    w² = Var x - v, a = w / Var x, s² = v / Var x, for v < Var x (Tipping & Bishop, 1999, in one
    dimension, with β); for larger v, w = a = 0 and s² = 1.
    """
    share = min(v / VARIANCE, 1.0)
    w = (VARIANCE * (1 - share)) ** 0.5
    a = w / VARIANCE
    return {
        "w": w,
        "a": a,
        "s2": share,
        "mse": VARIANCE * share,
        "kl": -np.log(share) / 2,
        "sup_kl": gaussian_kl(a, share),  # at x = ±1
    }


def disjoint(num: int) -> tuple[float, float]:
    """Returns MSE and KL (for every x) of `num` posteriors with disjoint supports.

    The prior and the range of x have `num` parts each; G returns the center of x's interval.
    """
    return VARIANCE / num**2, float(np.log(num))


def bound(mse: Any) -> Any:
    """Returns the lower bound of E KL, and so of sup_x KL, in nats, for a mean squared error."""
    return np.maximum(np.log(2) - np.log(2 * np.pi * np.e * np.asarray(mse)) / 2, 0)


def init(key: Array) -> dict[str, list[tuple[Array, Array]]]:
    """Returns the parameters of E: x -> (mean, log-variance), and of G: z -> x̂."""

    def net(key: Array, sizes: tuple[int, ...]) -> list[tuple[Array, Array]]:
        keys = jax.random.split(key, len(sizes) - 1)
        pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
        return [(jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n)) for k, m, n in pairs]

    key_E, key_G = jax.random.split(key)
    return {"E": net(key_E, (1, WIDTH, WIDTH, 2)), "G": net(key_G, (1, WIDTH, WIDTH, 1))}


def apply(layers: list[tuple[Array, Array]], x: Array) -> Array:
    """Maps x [N, m] through a perceptron with tanh."""
    *hidden, (last, shift) = layers
    for weight, bias in hidden:
        x = jnp.tanh(x @ weight + bias)
    return x @ last + shift


def posterior(params: dict, x: Array) -> tuple[Array, Array]:
    """Returns mean and log-variance of q(z|x), [N] each, for x [N]."""
    mean, log_variance = apply(params["E"], x[:, None]).T
    return mean, log_variance


def terms(params: dict, x: Array, noise: Array) -> tuple[Array, Array]:
    """Returns (x - G(z))² for every draw of noise [K, N] or [K, 1], and KL [N], for x [N]."""
    mean, log_variance = posterior(params, x)
    z = mean + jnp.exp(log_variance / 2) * noise
    x_hat = apply(params["G"], z.reshape(-1, 1)).reshape(z.shape)
    kl = (jnp.square(mean) + jnp.exp(log_variance) - 1 - log_variance) / 2
    return jnp.square(x - x_hat), kl


def loss(params: dict, key: Array, v: Array) -> Array:
    """Returns E(x - G(z))² + 2v E KL, with one x per stratum and antithetic noise."""
    key_x, key_z = jax.random.split(key)
    edges = jnp.linspace(-1, 1, STRATA, endpoint=False)
    x = edges + jax.random.uniform(key_x, (STRATA,)) * 2 / STRATA
    noise = jax.random.normal(key_z, (NOISES, STRATA))
    errors, kl = terms(params, x, jnp.concatenate([noise, -noise]))
    return errors.mean() + 2 * v * kl.mean()


@partial(jax.jit, static_argnames="steps")
def optimize(levels: Array, key: Array, *, steps: int) -> dict:
    """Returns parameters, with a leading axis over `levels`, after `steps` steps of Adam."""
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, steps))
    keys = jax.random.split(key, len(levels) + 1)
    params = jax.vmap(init)(keys[1:])

    def step(carry, key):
        params, state = carry
        # Divided by the level, so that all levels have losses of the same scale.
        total = lambda p: (jax.vmap(loss, (0, None, 0))(p, key, levels) / levels).sum()  # noqa: E731
        updates, state = optimizer.update(jax.grad(total)(params), state)
        return (optax.apply_updates(params, updates), state), None

    start = params, optimizer.init(params)
    return jax.lax.scan(step, start, jax.random.split(keys[0], steps))[0][0]


@jax.jit
def measure(params: dict) -> dict[str, Array]:
    """Returns MSE, E KL, sup_x KL and the standard deviation of G(z) over p(z), by quadrature."""
    x = jnp.linspace(-1, 1, 1001)
    nodes, weights = (jnp.asarray(a, jnp.float32) for a in np.polynomial.hermite_e.hermegauss(24))
    weights = weights / weights.sum()
    errors, kl = terms(params, x, nodes[:, None])
    trapezoid = jnp.ones_like(x).at[jnp.asarray([0, -1])].set(0.5) / (len(x) - 1)
    g = apply(params["G"], nodes[:, None])[:, 0]
    return {
        "mse": weights @ errors @ trapezoid,
        "kl": trapezoid @ kl,
        "sup_kl": kl.max(),
        "spread": jnp.sqrt(weights @ jnp.square(g - weights @ g)),
    }


def results(study: Study) -> Iterator[Table | Figure]:
    """Yields the table over v, and the figure."""
    steps = RUNLOCAL_STEPS if study.runlocal else STEPS
    fitted, measured = {}, {}
    for seed in study.seeds:
        fitted[seed] = optimize(jnp.asarray(LEVELS), jax.random.key(seed), steps=steps)
        measured[seed] = {n: np.asarray(a) for n, a in jax.vmap(measure)(fitted[seed]).items()}
    yield _table(measured)
    yield _figure(study, fitted[study.seeds[0]], measured[study.seeds[0]])


def _table(measured: dict[int, dict[str, np.ndarray]]) -> Table:
    rows = []
    for i, v in enumerate(LEVELS):
        optimum = linear(v)
        found = [{seed: float(m[n][i]) for seed, m in measured.items()} for n in NAMES]
        least = {seed: float(bound(m["mse"][i])) for seed, m in measured.items()}
        exact = [dict.fromkeys(measured, float(optimum[n])) for n in ("mse", "sup_kl")]
        rows.append(Row((f"{v:.3g}",), (*exact, *found, least)))
    titles = ("linear: MSE", "linear: sup KL", "MSE", "E KL", "sup KL", "sd of G(z)", "bound")
    columns = tuple(Column(title=title, key="") for title in titles)
    return Table("Reconstruction against KL divergence", ("v = βσ²",), columns, tuple(rows), NOTE)


NAMES = ("mse", "kl", "sup_kl", "spread")
NOTE = (
    "x is uniform on [-1, 1]; KL is in nats. 'linear' is the closed form for linear nets, the "
    "other columns are perceptrons. The bound is the smallest E KL of any encoder and decoder with "
    "this MSE. Proposition 1: for v ≥ Var x = 0.333, KL is 0 for every x, G(z) does not depend on "
    "z, and MSE is Var x. Proposition 2: sup KL is unbounded as MSE falls."
)


def _figure(study: Study, params: dict, found: dict[str, np.ndarray]) -> Figure:
    canvas = plots.canvas(12, 6.6)
    axes = canvas.subplots(2, 3).ravel()
    for axis, level in zip(axes[:3], (1.0, 0.1, 0.001), strict=True):
        _posteriors(axis, params, level, found["mse"][LEVELS.index(level)])
    _intervals(axes[3])
    mse, levels = np.geomspace(1e-4, VARIANCE, 200), np.geomspace(1e-4, 1, 200)
    axis = axes[4]
    axis.fill_between(mse, 0, bound(mse), color=RED, alpha=0.15, lw=0, label="impossible")
    axis.plot(mse, [linear(v)["sup_kl"] for v in mse], color=GRAY, label="linear VAE")
    axis.plot(*np.transpose([disjoint(k) for k in range(1, 58)]), ".", ms=4, color=GREEN,
              label="disjoint intervals")  # fmt: skip
    axis.plot(found["mse"], found["sup_kl"], "o", color=BLUE, label="VAE")
    axis.set(xscale="log", xlabel="reconstruction: MSE", ylabel="sup KL, nats", ylim=(-0.2, None))
    axis.set_title("Reconstruction drives sup KL to infinity", fontsize=10)
    axis.legend(fontsize=8, frameon=False)
    axis, other = axes[5], axes[5].twinx()
    axis.plot(levels, [linear(v)["mse"] / VARIANCE for v in levels], color=GREEN)
    axis.plot(LEVELS, found["mse"] / VARIANCE, "o", color=GREEN)
    other.plot(levels, [linear(v)["sup_kl"] for v in levels], color=BLUE)
    other.plot(LEVELS, found["sup_kl"], "o", color=BLUE)
    axis.axvline(VARIANCE, color=GRAY, ls=":", lw=1)
    axis.set(xscale="log", xlabel="v = βσ²")
    axis.set_ylabel("MSE / Var x", color=GREEN)
    other.set_ylabel("sup KL, nats", color=BLUE)
    axis.set_title("KL = 0 loses reconstruction (dotted: Var x)", fontsize=10)
    return plots.save(
        canvas,
        study.figures / "theory.png",
        "Propositions 1 and 2",
        "Top: posteriors of nine x at three levels v = βσ² of a one-dimensional VAE; the prior is "
        "black. At v = 1 all equal the prior; as v falls they separate. Bottom: the paper's "
        "Figure 1, disjoint supports; KL against MSE; both against v (lines: linear nets in closed "
        "form; dots: perceptrons).",
        tight=True,
    )


def _posteriors(axis: Any, params: dict, level: float, mse: float) -> None:
    x = jnp.linspace(-1, 1, 9)
    mean, log_variance = posterior(jax.tree.map(lambda a: a[LEVELS.index(level)], params), x)
    z = np.linspace(-3.5, 3.5, 2001)
    deviations = np.exp(np.asarray(log_variance) / 2)
    for at, center, deviation in zip(np.asarray(x), np.asarray(mean), deviations, strict=True):
        axis.plot(z, stats.norm.pdf(z, center, deviation), color=_color(at), lw=1.2)
    _finish(axis, f"v = {level:g}: MSE {mse:.2g}")


def _intervals(axis: Any) -> None:
    """Draws four posteriors with disjoint supports: each a quarter of the prior."""
    edges = stats.norm.ppf(np.linspace(0.0005, 0.9995, 5))
    for k, (low, high) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
        z = np.linspace(low, high, 100)
        axis.fill_between(z, 0, 4 * stats.norm.pdf(z), color=_color(k / 1.5 - 1), alpha=0.6, lw=0)
    _finish(axis, "Four disjoint supports: KL = ln 4 for every x")


def _finish(axis: Any, title: str) -> None:
    """Adds the prior and titles to a panel of posteriors."""
    z = np.linspace(-3.5, 3.5, 300)
    axis.plot(z, stats.norm.pdf(z), color="black", lw=1)
    axis.set(xlabel="z", ylabel="q(z|x)", ylim=(0, None))
    axis.set_title(title, fontsize=10)


def _color(x: float) -> tuple[float, float, float]:
    """Returns a color between blue (x = -1) and red (x = 1)."""
    share = (x + 1) / 2
    return 0.2 + 0.6 * share, 0.35, 0.85 - 0.6 * share


REPRODUCTION = Reproduction(title="Propositions 1 and 2, Figure 1: the theory", results=results)
