"""The paper's latent mapping: a GAN whose g takes draws z' of a base prior to the embeddings.

Geng et al. (arXiv 2009.11016), equations (12) and (13): the prior is fitted to the embedding.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from pmjax import errors, nets, parallel
from pmjax.losses import hinge_critic, hinge_generator
from pmjax.nets.mlp import LatentCritic, LatentGenerator
from pmjax.step import Game, Player, TrainState

Array = jax.Array


def _sphere(key: Array, shape: tuple[int, ...]) -> Array:
    z = jax.random.normal(key, shape)
    return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


BASES = {"gaussian": jax.random.normal, "sphere": _sphere}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior:
    """A GAN on the embeddings; g and D are residual perceptrons."""

    base_prior: str = "gaussian"  # z' ~ N(0, I), or 'sphere': N(0, I) divided by its norm
    base_dim: int = 0  # of z'; 0: the embedding's
    width: int = 128  # of g's and D's hidden layers
    blocks: int = 2  # residual blocks in each
    spectral_norm: bool = True  # on every layer of D
    critic_repeats: int = 1  # updates of D in each step
    generator_repeats: int = 1  # updates of g in each step

    def __post_init__(self):
        if self.base_prior not in BASES:
            raise errors.unknown("base_prior", self.base_prior, BASES)

    def game(self, latent_dim: int, optimizer, axis: str | None) -> Game:
        """Returns the nets g and D, and the players who move them."""
        g = LatentGenerator(latent_dim, self.width, self.blocks), (self.base_dim or latent_dim,)
        D = LatentCritic(self.width, self.blocks, self.spectral_norm), (latent_dim,)
        call_D = partial(nets.apply, D[0], train=True)

        def forward(params, stats, batch, key):
            return {"z": batch}, stats

        def generate(params, stats, z, key):
            base = parallel.draw(BASES[self.base_prior], key, (len(z), *g[1]), axis)
            return nets.update(g[0], params["g"], stats["g"], base)

        def critic_loss(params, stats, shared, key):
            """Equation (12)."""
            z = jax.lax.stop_gradient(shared["z"])
            z_fake, _ = generate(params, stats, z, key)
            both = jnp.concatenate([z, z_fake])  # one pass: larger products, one power iteration
            said, stats_D = nets.update(D[0], params["D"], stats["D"], both)
            real, fake = jnp.split(said, 2)
            metrics = {"D/real": real.mean(), "D/fake": fake.mean()}
            return hinge_critic(real, fake), (metrics, stats | {"D": stats_D})

        def generator_loss(params, stats, shared, key):
            """Equation (13)."""
            z_fake, stats_g = generate(params, stats, shared["z"], key)
            fake = call_D(params["D"], stats["D"], z_fake)
            return hinge_generator(fake), ({}, stats | {"g": stats_g})

        players = (
            Player("latent_critic", ("D",), critic_loss, optimizer, self.critic_repeats),
            Player("latent_generator", ("g",), generator_loss, optimizer, self.generator_repeats),
        )
        return Game({"g": g, "D": D}, forward, (), players, averaged=("g",))

    def trained(self, state: TrainState) -> dict:
        """Returns what `sample` needs: g's averaged parameters."""
        return state.ema["g"]

    def base(self, params: dict, key: Array, num: int) -> Array:
        """Draws z' [num, p]."""
        return BASES[self.base_prior](key, (num, params["enter"]["kernel"].shape[0]))

    def sample(self, params: dict, key: Array, num: int) -> Array:
        """Draws g(z') [num, d]; with the same key, from the z' that `base` draws."""
        g = LatentGenerator(params["leave"]["kernel"].shape[1], self.width, self.blocks)
        return nets.apply(g, params, {}, self.base(params, key, num))
