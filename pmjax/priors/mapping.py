"""The prior of methods that learn one themselves: z = F(z'), z' ~ N(0, I), with stage 1's net F.

Pidhorskyi, Adjeroh, Doretto: Adversarial Latent Autoencoders (2020).
"""

import dataclasses

import jax

from pmjax.errors import UserError
from pmjax.nets.base import apply
from pmjax.nets.mlp import LatentGenerator
from pmjax.priors.base import Array, SharedPrior, Tree


@dataclasses.dataclass(frozen=True)
class Prior(SharedPrior):
    """Stage 1's own mapping F; nothing is fitted."""

    nets = ("F",)

    def from_stage1(self, params: Tree) -> Tree:
        """Returns F's parameters, from the parameters of stage 1's nets by name."""
        if "F" not in params:
            raise UserError(
                "Prior 'mapping' is the net F of methods that train one; this method has none. "
                "Choose a prior that is fitted to the embeddings, such as 'gmm'."
            )
        return params["F"]

    def sample_base(self, params: Tree, key: Array, num: int) -> Array:
        """Draws z' [num, p]."""
        return jax.random.normal(key, (num, params["enter"]["kernel"].shape[0]))

    def sample(self, params: Tree, key: Array, num: int) -> Array:
        """Draws F(z') [num, d], with z' as `sample_base` draws it for this key."""
        blocks = sum(name.startswith("Dense_") for name in params) // 2
        width, latent_dim = params["leave"]["kernel"].shape
        F = LatentGenerator(latent_dim, width, blocks)
        return apply(F, params, {}, self.sample_base(params, key, num))
