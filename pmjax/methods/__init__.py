"""Methods for stage 1, one file each: the nets, the forward pass they share, the players' losses.

A file `pmjax/methods/NAME.py` defines `Method`, a frozen dataclass whose fields are its
hyper-parameters (`config.method_args`), with one function, `game(plan) -> step.Game`. Checkpoints,
resuming, both compilations, every metric and the figures come with it: they need only that the
game has nets named 'E' and 'G', and that `forward` returns the embeddings as shared['z'].
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import optax
from flax import linen as nn

from pmjax import nets
from pmjax.nets.layers import LatentBatchNorm

Array = jax.Array


class Embedding(nn.Module):
    """E and its BatchNorm: z = BN(E(x)), equation (11)."""

    trunk: nn.Module
    norm: nn.Module | None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to z [N, d]."""
        z = self.trunk(x, train=train)
        return z if self.norm is None else self.norm(z, train=train)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a method is given to build its nets and players from.

    Attributes:
      shape: of one example.
      latent_dim: of the embedding.
      family: of the nets: a file in `pmjax/nets`.
      net_args: the family's arguments.
      batch_norm: keyword arguments of `LatentBatchNorm`.
      optimizer: repeats in a step -> Optax transformation.
      precision: in which the nets compute, 'float32' or 'bfloat16'.
      axis: name of the batch axis under pmap.
    """

    shape: tuple[int, ...]
    latent_dim: int
    family: str
    net_args: dict[str, Any]
    batch_norm: dict[str, Any]
    optimizer: Callable[[int], optax.GradientTransformation]
    precision: str = "float32"
    axis: str | None = None

    def encoder(self, *, batch_norm: bool = True) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns E, with the latent BatchNorm or without, and its input's shape."""
        trunk = self._net("Encoder", latent_dim=self.latent_dim)
        norm = LatentBatchNorm(axis=self.axis, **self.batch_norm) if batch_norm else None
        return Embedding(trunk, norm), self.shape

    def decoder(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns G and its input's shape."""
        return self._net("Decoder", shape=self.shape), (self.latent_dim,)

    def critic(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns d and its input's shape."""
        return self._net("Critic"), self.shape

    def _net(self, kind: str, **args) -> nn.Module:
        common = {"dtype": self.precision, "axis": self.axis}
        return getattr(nets.family(self.family), kind)(**args, **common, **self.net_args)
