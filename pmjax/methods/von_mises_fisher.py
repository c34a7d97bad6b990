"""The von Mises-Fisher distribution on the unit sphere in `dim` dimensions, for all κ > 0.

Its density is proportional to exp(κ ⟨mean, z⟩). Everything is float32 and differentiable.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.scipy.special import gammaln

from pmjax.distributed import collectives

# Bessel functions follow by recurrence from their expansion at an order that is larger by this.
_HIGHER = 16
# Each of Wood's proposals is accepted with probability 0.65 or more: all fail once in 10⁷ draws.
_PROPOSALS = 16
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(64)


def mean_length(dim: int, kappa: Array) -> Array:
    """Returns A(κ) = I_{dim/2}(κ) / I_{dim/2-1}(κ), the length of E[z], for each κ."""
    return _ratios(dim / 2 - 1, kappa)[-1]


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def kl_from_uniform(dim: int, kappa: Array) -> Array:
    """Returns KL(vMF(·, κ) ‖ uniform) in nats for each κ: κA - log I_v + v log(κ/2) - log Γ(v+1).

    v is dim/2 - 1. Davidson et al. (2018), section 3, with the constants collected.
    """
    order = dim / 2 - 1
    high = order + _HIGHER
    ratios = _ratios(order, kappa)
    root = jnp.sqrt(high**2 + kappa**2)
    # log I at the high order without its κ, which cancels with that of κA.
    log_bessel = high**2 / (root + kappa) - high * jnp.arcsinh(high / kappa)
    log_bessel += _debye(high, kappa) - np.log(2 * np.pi) / 2
    log_bessel -= sum(jnp.log(ratio) for ratio in ratios[1:])
    constant = order * jnp.log(kappa / 2) - gammaln(order + 1)
    return kappa * (ratios[-1] - 1) - log_bessel + constant


@kl_from_uniform.defjvp
def _kl_slope(dim: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (kappa,), (tangent,) = primals, tangents
    _, slope = jax.jvp(partial(mean_length, dim), (kappa,), (jnp.ones_like(kappa),))
    return kl_from_uniform(dim, kappa), kappa * slope * tangent


def _ratios(order: float, kappa: Array) -> list[Array]:
    """Returns I_{v+1}(κ)/I_v(κ) for v from order + _HIGHER down to order.

    1/r_{v-1} = 2v/κ + r_v (DLMF 10.29.1), which is stable downwards.
    """
    high = order + _HIGHER
    # I_{v+1}/I_v is the derivative of log I_v, less v/κ.
    _, slope = jax.jvp(partial(_debye, high), (kappa,), (jnp.ones_like(kappa),))
    ratios = [kappa / (high + jnp.sqrt(high**2 + kappa**2)) + slope]
    for step in range(_HIGHER):
        ratios.append(1 / (2 * (high - step) / kappa + ratios[-1]))
    return ratios


def _debye(order: float, kappa: Array) -> Array:
    """Returns the slowly varying part of log I_order(κ), large orders (DLMF 10.41.3, 10.41.10)."""
    square = order**2 + kappa**2
    p = order / jnp.sqrt(square)
    first = (3 * p - 5 * p**3) / 24
    second = (81 * p**2 - 462 * p**4 + 385 * p**6) / 1152
    return -jnp.log(square) / 4 + jnp.log1p(first / order + second / order**2)


def sample(mean: Array, kappa: Array, key: Array) -> Array:
    """Draws z = t·mean + √(1 - t²)·v, v uniform and orthogonal to the mean; differentiable.

    The means [N, dim] have norm one, `kappa` is [N], and `key` one key for the global batch.
    """
    cosine_key, direction_key = jax.random.split(key)
    t = _cosine(mean.shape[-1], kappa, cosine_key)[:, None]
    v = collectives.sample_batch(jax.random.normal, direction_key, mean.shape)
    v -= jnp.sum(v * mean, -1, keepdims=True) * mean
    v /= jnp.linalg.norm(v, axis=-1, keepdims=True)
    z = t * mean + jnp.sqrt(1 - t**2) * v
    # By rounding, v is not quite orthogonal to the mean.
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def _cosine(dim: int, kappa: Array, key: Array) -> Array:
    """Draws ⟨mean, z⟩ [N] by rejection (Wood 1994), with the exact gradient in κ."""
    fixed = lax.stop_gradient(kappa)[:, None]
    beta_key, uniform_key = jax.random.split(key)
    shape = (len(kappa), _PROPOSALS)
    half = (dim - 1) / 2
    beta = collectives.sample_batch(lambda k, s: jax.random.beta(k, half, half, s), beta_key, shape)
    uniform = collectives.sample_batch(jax.random.uniform, uniform_key, shape)
    b = half / (fixed + jnp.sqrt(fixed**2 + half**2))
    center = (1 - b) / (1 + b)
    proposed = (1 - (1 + b) * beta) / (1 - (1 - b) * beta)
    log_ratio = fixed * (proposed - center)
    log_ratio += 2 * half * (jnp.log1p(-center * proposed) - jnp.log1p(-(center**2)))
    accepted = log_ratio >= jnp.log(uniform)
    first = jnp.take_along_axis(proposed, jnp.argmax(accepted, 1)[:, None], 1)
    t = jnp.where(accepted.any(1, keepdims=True), first, mean_length(dim, fixed))[:, 0]
    t = jnp.clip(t, -1 + 1e-6, 1 - 1e-6)
    # t + slope·(κ - κ): its value is t, its gradient the slope's.
    slope = lax.stop_gradient(_slope(dim, lax.stop_gradient(kappa), t))
    return t + slope * (kappa - lax.stop_gradient(kappa))


def _slope(dim: int, kappa: Array, t: Array) -> Array:
    """Returns dt/dκ [N] at a fixed value of the distribution function F(t; κ).

    Implicit reparameterization (Figurnov et al. 2018): -∂F/∂κ over the density, here an integral
    over the angle. The derivative of an accepted proposal would be biased.
    """
    end = jnp.arccos(t)[:, None]
    angle = end * (_NODES + 1) / 2
    kappa = kappa[:, None]

    def log_density(angle: Array) -> Array:
        return (dim - 2) * jnp.log(jnp.sin(angle)) + kappa * jnp.cos(angle)

    weight = jnp.exp(log_density(angle) - log_density(end)) * (end / 2) * _WEIGHTS
    return jnp.sin(end[:, 0]) * jnp.sum((jnp.cos(angle) - mean_length(dim, kappa)) * weight, 1)
