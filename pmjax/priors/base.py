"""What a prior over the embeddings is: one of three declared kinds, each with a `sample`.

A file `pmjax/priors/NAME.py` defines `Prior`, a frozen dataclass of one of these kinds. Its fields
are its hyper-parameters (`config.prior_args`).
"""

import abc
import functools
from typing import Any, ClassVar

import jax
import numpy as np

from pmjax import plugins
from pmjax.errors import UserError
from pmjax.methods.base import MethodSpec
from pmjax.nets.base import Nets

Array = jax.Array
Tree = Any  # arrays by name, possibly nested


class BasePrior(abc.ABC):
    """What priors of every kind do, given their arrays `params`."""

    @property
    def min_embeddings(self) -> int:
        """The fewest training examples from which the prior can be made."""
        return 1

    def require_embeddings(self, num: int) -> None:
        """Raises `UserError` if `num` training examples are too few."""
        if num < self.min_embeddings:
            name = type(self).__module__.rpartition(".")[2]
            raise UserError(
                f"Prior '{name}' needs at least {self.min_embeddings} training examples, not "
                f"{num}: add some, or choose other priors (config.prior, config.eval.baselines)."
            )

    @abc.abstractmethod
    def sample(self, params: Tree, key: Array, num: int) -> Array:
        """Draws embeddings z [num, d]."""

    def sample_base(self, params: Tree, key: Array, num: int) -> Array | None:
        """Draws the z' [num, p] that `sample` maps for the same key; None if it maps none."""
        return None


class FittedPrior(BasePrior):
    """A prior that is fitted to the table of embeddings in one call."""

    @abc.abstractmethod
    def fit(self, z: np.ndarray, *, seed: int) -> Tree:
        """Returns the arrays `params` for embeddings z [N, d], float32."""


class TrainedPrior(BasePrior):
    """A prior that the training loop trains, with the embeddings as its data."""

    @property
    def needs_embeddings(self) -> bool:
        """Whether `init_from_embeddings` is required, which rules out joint training."""
        return False

    @abc.abstractmethod
    def spec(self, latent_dim: int) -> MethodSpec:
        """Returns the nets, and the objectives that update them."""

    def forward(self, nets: Nets, z: Array, key: Array) -> dict[str, Array]:
        """Returns the embeddings z; the losses share nothing else."""
        return {"z": z}

    def init_from_embeddings(self, spec: MethodSpec, z: np.ndarray, *, seed: int) -> MethodSpec:
        """Returns the spec with all that is computed from embeddings z [N, d] before training."""
        return spec

    @abc.abstractmethod
    def export(self, params: Tree, stats: Tree) -> Tree:
        """Returns the arrays that `sample` takes, from the nets' (averaged) params and stats."""


class SharedPrior(BasePrior):
    """A prior made of nets that stage 1 has trained."""

    nets: ClassVar[tuple[str, ...]]  # workdirs keep the parameters of nets with these names

    @abc.abstractmethod
    def from_stage1(self, params: Tree) -> Tree:
        """Returns the arrays that `sample` takes, from the parameters of stage 1's nets by name."""


def make(name: str, args: dict[str, Any] | None = None) -> BasePrior:
    """Returns the prior `pmjax/priors/NAME.py` with the given arguments; `UserError` if unknown."""
    return plugins.load("priors", name).Prior(**(args or {}))


@functools.cache
def shared_nets() -> tuple[str, ...]:
    """Returns the names of all nets that some prior takes from stage 1."""
    classes = [plugins.load("priors", name).Prior for name in plugins.names("priors")]
    return tuple(sorted({n for c in classes if issubclass(c, SharedPrior) for n in c.nets}))
