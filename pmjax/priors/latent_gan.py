"""The paper's latent mapping: a GAN whose g maps draws z' of a base prior to the embeddings.

Geng et al. (arXiv 2009.11016), equations (12) and (13). Their base prior is a Gaussian. The default
here is a mixture of Gaussians that is fitted to the embeddings first, and that g corrects.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.core import FrozenDict
from jax import lax

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.methods.base import LossValue, MethodSpec, Objective, Shared
from pmjax.methods.losses import hinge_critic, hinge_generator
from pmjax.nets.base import Net, Nets, apply
from pmjax.nets.mlp import LatentCritic, LatentGenerator
from pmjax.priors import gmm
from pmjax.priors.base import Array, TrainedPrior, Tree
from pmjax.priors.sphere_uniform import sphere

BASES = {"gaussian": jax.random.normal, "sphere": sphere}
FITTED_BASES = {"gmm": gmm.Prior()}  # to the embeddings: z = z' + g(z'), instead of g(z')


class FittedBase(nn.Module):
    """Holds the arrays of a fitted base in the training state, as the collection 'base'."""

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
    base_dim: int = 0  # of z' (0: the embedding's, as a fitted base requires)
    width: int = 128  # of g's and D's hidden layers
    blocks: int = 2  # residual blocks in each
    spectral_norm: bool = True  # on every layer of D
    critic_repeats: int = 1  # updates of D in each step
    generator_repeats: int = 1  # updates of g in each step

    def __post_init__(self) -> None:
        if self.base_prior not in BASES | FITTED_BASES:
            raise errors.unknown("base_prior", self.base_prior, BASES | FITTED_BASES)
        if self.base_dim and self.needs_embeddings:
            raise errors.UserError(
                f"prior_args.base_dim={self.base_dim} must be 0, the embedding's, as the base is "
                f"fitted to it. Or set --config.prior_args.base_prior=gaussian."
            )

    @property
    def needs_embeddings(self) -> bool:
        """Whether the base is fitted to the embeddings."""
        return self.base_prior in FITTED_BASES

    @property
    def min_embeddings(self) -> int:
        """That of a fitted base."""
        return FITTED_BASES[self.base_prior].min_embeddings if self.needs_embeddings else 1

    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the nets g and D, and the objectives that update them.

        A fitted base is N(0, I) until `init_from_embeddings` replaces it.
        """
        g = LatentGenerator(latent_dim, self.width, self.blocks)
        D = LatentCritic(self.width, self.blocks, self.spectral_norm)
        nets = {"g": Net(g, (self.base_dim or latent_dim,)), "D": Net(D, (latent_dim,))}
        objectives = (
            Objective("latent_critic", ("D",), self.critic_loss, self.critic_repeats),
            Objective("latent_generator", ("g",), self.generator_loss, self.generator_repeats),
        )
        return MethodSpec(nets, self.forward, (), objectives, averaged=("g",))

    def init_from_embeddings(self, spec: MethodSpec, z: np.ndarray, *, seed: int) -> MethodSpec:
        """Returns the spec with a base that is fitted to embeddings z [N, d], if it has one."""
        if not self.needs_embeddings:
            return spec
        arrays = FITTED_BASES[self.base_prior].fit(z, seed=seed)
        base = Net(FittedBase(FrozenDict(arrays)), (z.shape[1],))
        return dataclasses.replace(spec, nets=spec.nets | {"base": base})

    def critic_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """E[relu(1 - D(z))] + E[relu(1 + D(g(z')))], equation (12)."""
        z = lax.stop_gradient(s.z)
        z_fake = self._generate(nets, z, key, update_stats=False)
        # One pass: larger products, one power iteration.
        real, fake = jnp.split(nets.D(jnp.concatenate([z, z_fake])), 2)
        return hinge_critic(real, fake), {"D/real": real.mean(), "D/fake": fake.mean()}

    def generator_loss(self, nets: Nets, s: Shared, key: Array) -> LossValue:
        """-E[D(g(z'))], equation (13)."""
        z_fake = self._generate(nets, s.z, key)
        return hinge_generator(nets.D(z_fake, update_stats=False)), {}

    def _generate(self, nets: Nets, z: Array, key: Array, *, update_stats: bool = True) -> Array:
        """Draws g(z'), or z' + g(z') with a fitted base: as many as embeddings z."""
        sampler = self.sampler(nets.stats.get("base", {}).get("base", {}))
        dim = nets.g.params["enter"]["kernel"].shape[0]
        base = collectives.sample_batch(sampler, key, (len(z), dim))
        out = nets.g(base, update_stats=update_stats)
        return base + out if self.needs_embeddings else out

    def export(self, params: Tree, stats: Tree) -> Tree:
        """Returns g's parameters, and the arrays of a fitted base."""
        return params["g"] | stats.get("base", {})

    def sample_base(self, params: Tree, key: Array, num: int) -> Array:
        """Draws z' [num, p]."""
        dim = params["enter"]["kernel"].shape[0]
        return self.sampler(params.get("base", {}))(key, (num, dim))

    def sample(self, params: Tree, key: Array, num: int) -> Array:
        """Draws g(z') [num, d], or z' + g(z'), with z' as `sample_base` draws it for this key."""
        g = LatentGenerator(params["leave"]["kernel"].shape[1], self.width, self.blocks)
        base = self.sample_base(params, key, num)
        out = apply(g, {n: p for n, p in params.items() if n != "base"}, {}, base)
        return base + out if self.needs_embeddings else out

    def sampler(self, fitted: dict[str, Array]) -> Callable[[Array, tuple[int, ...]], Array]:
        """Returns the base, (key, [N, p]) -> z'; N(0, I) for a fitted base without arrays."""
        if fitted:
            return lambda key, shape: FITTED_BASES[self.base_prior].sample(fitted, key, shape[0])
        return BASES.get(self.base_prior, jax.random.normal)
