"""A rectified flow: dz_t/dt = v(z_t, t) carries N(0, I) at t = 0 to the embeddings at t = 1.

Liu et al., Flow Straight and Fast (2022); Lipman et al., Flow Matching for Generative Modeling
(2022). It is what latent diffusion is to images, without a prior to match.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec
from pmjax.methods.losses import squared_error
from pmjax.nets.base import Net, Nets, apply
from pmjax.priors import standardized
from pmjax.priors.base import TrainedPrior
from pmjax.training.step import TrainState

Array = jax.Array
_WAVES = 6  # of the time, each twice as fast as the one before


class Velocity(nn.Module):
    """v(z_t, t): a residual perceptron whose blocks all hear the time."""

    width: int
    blocks: int

    @nn.compact
    def __call__(self, z_and_t: Array, *, train: bool) -> Array:
        """Maps z and the time behind it, [N, d + 1], to [N, d]."""
        z, t = z_and_t[:, :-1], z_and_t[:, -1:]
        angles = t * np.pi * 2.0 ** np.arange(_WAVES)
        t = jnp.concatenate([t, jnp.sin(angles), jnp.cos(angles)], -1)
        x = nn.Dense(self.width, name="enter")(z)
        for _ in range(self.blocks):
            h = nn.Dense(self.width)(nn.silu(x)) + nn.Dense(self.width)(t)
            x = x + nn.Dense(self.width)(nn.silu(h))
        zeros = nn.initializers.zeros
        return nn.Dense(z.shape[-1], name="leave", kernel_init=zeros)(nn.silu(x))


def _euler(v, z: Array, t: Array, dt: float) -> Array:
    return z + dt * v(z, t)


def _heun(v, z: Array, t: Array, dt: float) -> Array:
    first = v(z, t)
    return z + dt / 2 * (first + v(z + dt * first, t + dt))


SOLVERS = {"euler": _euler, "heun": _heun}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(TrainedPrior):
    """A flow on the standardised embeddings, and how its equation is solved."""

    width: int = 256  # of the hidden layers
    blocks: int = 3  # residual blocks
    solver: str = "heun"  # or 'euler'
    ode_steps: int = 32
    b1: float = 0.9  # of Adam, in place of config.stage2.optimizer's

    def __post_init__(self):
        if self.solver not in SOLVERS:
            raise errors.unknown("solver", self.solver, SOLVERS)

    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the net v, and the objective who moves it."""
        parts = {"v": Net(Velocity(self.width, self.blocks), (latent_dim + 1,))}
        return standardized.spec(parts, self.loss, latent_dim, self.b1)

    def loss(self, nets: Nets, z: Array, key: Array) -> LossValue:
        """E‖v((1 - t) z' + t z, t) - (z - z')‖², the mean over coordinates."""
        time_key, noise_key = jax.random.split(key)
        t = collectives.sample_batch(jax.random.uniform, time_key, (len(z), 1))
        noise = collectives.sample_batch(jax.random.normal, noise_key, z.shape)
        z_and_t = jnp.concatenate([noise + t * (z - noise), t], -1)
        return squared_error(nets.v(z_and_t), z - noise), {}

    def export(self, state: TrainState) -> dict:
        """Returns what `sample` needs: v's averaged parameters, and the standardisation."""
        return standardized.export(state, "v")

    def sample_base(self, params: dict, key: Array, num: int) -> Array:
        """Draws z' [num, d]."""
        return jax.random.normal(key, (num, len(params["mean"])))

    def sample(self, params: dict, key: Array, num: int) -> Array:
        """Draws [num, d]; with the same key, from the z' that `sample_base` draws."""
        net, dt = Velocity(self.width, self.blocks), 1 / self.ode_steps

        def v(z, t):
            z_and_t = jnp.concatenate([z, jnp.full((num, 1), t)], -1)
            return apply(net, params["v"], {}, z_and_t)

        def step(index, z):
            return SOLVERS[self.solver](v, z, index * dt, dt)

        z = lax.fori_loop(0, self.ode_steps, step, self.sample_base(params, key, num))
        return standardized.restore(params, z)
