"""The paper's latent mapping: a GAN whose g takes draws z' of a base prior to the embeddings.

Geng et al. (arXiv 2009.11016), equations (12) and (13): the prior is fitted to the embedding. Their
base is a Gaussian. Here it is by default a mixture of Gaussians, fitted to the same embeddings
before, that g corrects.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec, Objective
from pmjax.methods.losses import hinge_critic, hinge_generator
from pmjax.nets import base as nets
from pmjax.nets.mlp import LatentCritic, LatentGenerator
from pmjax.priors import gmm
from pmjax.priors.base import TrainedPrior
from pmjax.priors.sphere_uniform import sphere
from pmjax.training.step import TrainState

Array = jax.Array


BASES = {"gaussian": jax.random.normal, "sphere": sphere}
FITTED_BASES = {"gmm": gmm.Prior()}  # to the embeddings: z = z' + g(z'), instead of g(z')


class FittedBase(nn.Module):
    """Keeps the arrays of a fitted base in the training state, as the collection 'base'."""

    arrays: FrozenDict[str, np.ndarray]

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """Returns z [N, d] unchanged."""
        for name, array in self.arrays.items():
            self.variable("base", name, jnp.asarray, array)
        return z


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prior(TrainedPrior):
    """A GAN on the embeddings; g and D are residual perceptrons."""

    base_prior: str = "gmm"  # fitted; 'gaussian': z' ~ N(0, I), the paper's; 'sphere': z'/‖z'‖
    base_dim: int = 0  # of z'; 0: the embedding's, which a fitted base always has
    width: int = 128  # of g's and D's hidden layers
    blocks: int = 2  # residual blocks in each
    spectral_norm: bool = True  # on every layer of D
    critic_repeats: int = 1  # updates of D in each step
    generator_repeats: int = 1  # updates of g in each step

    def __post_init__(self):
        if self.base_prior not in BASES | FITTED_BASES:
            raise errors.unknown("base_prior", self.base_prior, BASES | FITTED_BASES)
        if self.base_dim and self.needs_embeddings:
            raise UserError(
                f"prior_args.base_dim={self.base_dim} must be 0, the embedding's, as the base is "
                f"fitted to it; or take --config.prior_args.base_prior=gaussian."
            )

    @property
    def needs_embeddings(self) -> bool:
        """Whether it starts from the embeddings, and so cannot be trained beside them."""
        return self.base_prior in FITTED_BASES

    def game(self, latent_dim: int, optimizer, axis: str | None) -> MethodSpec:
        """Returns the nets g and D, and the objectives who move them.

        A fitted base is N(0, I) until `start` puts it in place.
        """
        g = LatentGenerator(latent_dim, self.width, self.blocks), (self.base_dim or latent_dim,)
        D = LatentCritic(self.width, self.blocks, self.spectral_norm), (latent_dim,)
        call_D = partial(nets.apply, D[0], train=True)

        def forward(params, stats, batch, key):
            return {"z": batch}, stats

        def generate(params, stats, z, key):
            fitted = stats.get("base", {}).get("base", {})
            base = collectives.sample_batch(self.sampler(fitted), key, (len(z), *g[1]), axis)
            out, stats_g = nets.update(g[0], params["g"], stats["g"], base)
            return (base + out if self.needs_embeddings else out), stats_g

        def critic_loss(params, stats, shared, key):
            """Equation (12)."""
            z = jax.lax.stop_gradient(shared["z"])
            z_fake, _ = generate(params, stats, z, key)
            # One pass: larger products, one power iteration.
            both = jnp.concatenate([z, z_fake])
            said, stats_D = nets.update(D[0], params["D"], stats["D"], both)
            real, fake = jnp.split(said, 2)
            metrics = {"D/real": real.mean(), "D/fake": fake.mean()}
            return hinge_critic(real, fake), (metrics, stats | {"D": stats_D})

        def generator_loss(params, stats, shared, key):
            """Equation (13)."""
            z_fake, stats_g = generate(params, stats, shared["z"], key)
            fake = call_D(params["D"], stats["D"], z_fake)
            return hinge_generator(fake), ({}, stats | {"g": stats_g})

        objectives = (
            Objective("latent_critic", ("D",), critic_loss, optimizer, self.critic_repeats),
            Objective(
                "latent_generator", ("g",), generator_loss, optimizer, self.generator_repeats
            ),
        )
        return MethodSpec({"g": g, "D": D}, forward, (), objectives, averaged=("g",))

    def init_from_embeddings(self, game: MethodSpec, z: np.ndarray, *, seed: int) -> MethodSpec:
        """Returns the game with its base fitted to embeddings z [N, d], if it is to be."""
        if not self.needs_embeddings:
            return game
        arrays = FITTED_BASES[self.base_prior].fit(z, seed=seed)
        base = FittedBase(FrozenDict(arrays)), (z.shape[1],)
        return dataclasses.replace(game, nets=game.nets | {"base": base})

    def export(self, state: TrainState) -> dict:
        """Returns what `sample` needs: g's averaged parameters, and a fitted base."""
        return dict(state.ema["g"]) | state.stats.get("base", {})

    def sample_base(self, params: dict, key: Array, num: int) -> Array:
        """Draws z' [num, p]."""
        shape = (num, params["enter"]["kernel"].shape[0])
        return self.sampler(params.get("base", {}))(key, shape)

    def sample(self, params: dict, key: Array, num: int) -> Array:
        """Draws g(z') [num, d]; with the same key, from the z' that `sample_base` draws."""
        g = LatentGenerator(params["leave"]["kernel"].shape[1], self.width, self.blocks)
        base = self.sample_base(params, key, num)
        out = nets.apply(g, {n: p for n, p in params.items() if n != "base"}, {}, base)
        return base + out if self.needs_embeddings else out

    def sampler(self, fitted: dict[str, Array]) -> Callable[[Array, tuple[int, ...]], Array]:
        """Returns (key, [N, p]) -> z'; a base without arrays is the Gaussian."""
        if fitted:
            return lambda key, shape: FITTED_BASES[self.base_prior].sample(fitted, key, shape[0])
        return BASES.get(self.base_prior, jax.random.normal)
