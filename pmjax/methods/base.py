"""Methods for stage 1, one file each: the nets, the forward pass they share, the objectives' losses.

A file `pmjax/methods/NAME.py` defines `Method`, a frozen dataclass whose fields are its
hyper-parameters (`config.method_args`), with one function, `game(plan) -> MethodSpec`. Checkpoints,
resuming, both compilations, every metric and the figures come with it: they need only that the
game has nets named 'E' and 'G', and that `forward` returns the embeddings as shared['z']. A method
that brings a prior of its own names its file in `pmjax/priors` in the class attribute `prior`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from pmjax.datasets.batches import to_float
from pmjax.distributed import collectives
from pmjax.nets import base as nets
from pmjax.nets.layers import LatentBatchNorm
from pmjax.nets.mlp import LatentCritic, LatentGenerator

Array = jax.Array
Tree = Any
Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """One of the objectives that a method alternates between.

    Attributes:
      name: appears in metrics, as 'loss/name'.
      nets: names of the nets whose parameters it moves.
      loss: (params, stats, shared, key) -> (loss, (metrics, stats)); `shared` is what the
        method's `forward` returned.
      optimizer: repeats -> the Optax transformation, whose schedule counts updates.
      updates_per_step: updates in each step. All see the same batch, each with a key of its own.
    """

    name: str
    nets: tuple[str, ...]
    loss: Callable[[Tree, Tree, Tree, Array], tuple[Array, tuple[Metrics, Tree]]]
    optimizer: Callable[[int], optax.GradientTransformation]
    updates_per_step: int = 1


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """A method as the step sees it: nets, the forward pass that is shared, and the objectives.

    Attributes:
      nets: by name, each with the shape of one example of its input.
      forward: (params, stats, batch, key) -> (shared, stats), the pass that all objectives' losses
        start from. It is computed once a step, before anybody moves, and again only for a
        objective's further updates; the statistics that it moves are moved once.
      shared_nets: names of the nets that `forward` calls.
      objectives: in the order of their turns.
      averaged: names of the nets of which the state keeps an exponential moving average.
    """

    nets: dict[str, tuple[nn.Module, tuple[int, ...]]]
    forward: Callable[[Tree, Tree, Array, Array], tuple[Tree, Tree]]
    shared_nets: tuple[str, ...]
    objectives: tuple[Objective, ...]
    averaged: tuple[str, ...] = ()


def combine(first: MethodSpec, second: MethodSpec, averaged: tuple[str, ...]) -> MethodSpec:
    """Joins two games whose objectives then take turns in every step.

    The second's losses find what they need in the first's `forward`.
    """
    return dataclasses.replace(
        first,
        nets=first.nets | second.nets,
        objectives=first.objectives + second.objectives,
        averaged=averaged,
    )


class Embedding(nn.Module):
    """E and its BatchNorm: z = BN(E(x)), equation (11)."""

    trunk: nn.Module
    norm: nn.Module | None

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to z [N, d]."""
        z = self.trunk(x, train=train)
        return z if self.norm is None else self.norm(z, train=train)


class Sphere(nn.Module):
    """Puts every embedding on the unit sphere."""

    def __call__(self, z: Array, *, train: bool) -> Array:
        """Divides z [N, d] by its norms."""
        return z / jnp.sqrt(jnp.sum(jnp.square(z), -1, keepdims=True) + 1e-12)


class Rescale(nn.Module):
    """Multiplies by a number, and then applies a net, if any, whose parameters keep their names."""

    factor: float
    net: nn.Module | None = None

    def setup(self):
        """Adds no level of names."""
        if self.net is not None:
            nn.share_scope(self, self.net)

    def __call__(self, z: Array, *, train: bool) -> Array:
        """Maps z [N, d] to [N, d], or to what the net makes of it."""
        z = self.factor * z
        return z if self.net is None else self.net(z, train=train)


class Posterior(nn.Module):
    """E of a Gaussian posterior q(z|x) = N(mean, exp(log_variance)); its mean is the embedding."""

    trunk: nn.Module

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Maps examples [N, …] to the posterior's mean [N, d]."""
        return self.posterior(x, train=train)[0]

    def posterior(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """Maps examples [N, …] to the posterior's mean and log-variance, [N, d] each."""
        mean, log_variance = jnp.split(self.trunk(x, train=train), 2, axis=-1)
        return mean, log_variance


def reparameterize(mean: Array, log_variance: Array, key: Array, axis: str | None) -> Array:
    """Draws z = mean + sqrt(variance)·noise, [N, d]; the batch axis has the name `axis`, if any."""
    noise = collectives.sample_batch(jax.random.normal, key, mean.shape, axis)
    return mean + jnp.exp(log_variance / 2) * noise


@dataclasses.dataclass(frozen=True)
class NetBuilder:
    """What a method is given to build its nets and objectives from.

    Attributes:
      shape: of one example.
      latent_dim: of the embedding.
      family: of the nets: a file in `pmjax/nets`.
      net_args: the family's arguments.
      batch_norm: keyword arguments of `LatentBatchNorm`.
      optimizer: (repeats in a step, *, b1) -> Optax transformation; `b1`, Adam's momentum, may be
        a objective's own.
      precision: in which the nets compute, 'float32' or 'bfloat16'.
      axis: name of the batch axis under pmap.
    """

    shape: tuple[int, ...]
    latent_dim: int
    family: str
    net_args: dict[str, Any]
    batch_norm: dict[str, Any]
    optimizer: Callable[..., optax.GradientTransformation]
    precision: str = "float32"
    axis: str | None = None

    def trunk(self, outputs: int) -> nn.Module:
        """Returns a net from an example to numbers [N, outputs], to wrap with a head."""
        return self._net("Encoder", latent_dim=outputs)

    def encoder(
        self, *, batch_norm: bool = True, sphere: bool = False
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns E, with the latent BatchNorm, on the sphere or neither; and its input's shape."""
        norm = LatentBatchNorm(axis=self.axis, **self.batch_norm) if batch_norm else None
        return Embedding(self.trunk(self.latent_dim), Sphere() if sphere else norm), self.shape

    def posterior(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns E with a Gaussian posterior, and its input's shape."""
        return Posterior(self.trunk(2 * self.latent_dim)), self.shape

    def decoder(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns G and its input's shape."""
        return self._net("Decoder", shape=self.shape), (self.latent_dim,)

    def critic(self) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns d, which judges examples, and its input's shape."""
        return self._net("Critic"), self.shape

    def latent_critic(
        self, *, width: int = 128, blocks: int = 2, spectral_norm: bool = True
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns a critic of embeddings, and its input's shape."""
        return LatentCritic(width, blocks, spectral_norm), (self.latent_dim,)

    def mapping(
        self, *, width: int = 128, blocks: int = 2, base_dim: int = 0
    ) -> tuple[nn.Module, tuple[int, ...]]:
        """Returns a net from base draws (of the embedding's size by default) to embeddings."""
        return LatentGenerator(self.latent_dim, width, blocks), (base_dim or self.latent_dim,)

    def _net(self, kind: str, **args) -> nn.Module:
        common = {"dtype": self.precision, "axis": self.axis}
        return getattr(nets.family(self.family), kind)(**args, **common, **self.net_args)


Forward = Callable[[dict, dict, Array, Array], tuple[dict[str, Array], dict]]


def autoencode(E: nn.Module, G: nn.Module) -> Forward:
    """Returns the forward pass z = E(x), x_hat = G(z)."""

    def forward(params, stats, batch, key):
        x = to_float(batch)
        z, stats_E = nets.update(E, params["E"], stats["E"], x)
        x_hat, stats_G = nets.update(G, params["G"], stats["G"], z)
        return {"x": x, "z": z, "x_hat": x_hat}, stats | {"E": stats_E, "G": stats_G}

    return forward


def autoencode_with_noise(E: Posterior, G: nn.Module, axis: str | None) -> Forward:
    """Returns the forward pass z, log_variance = E(x), z_drawn ~ q(z|x), x_hat = G(z_drawn)."""

    def forward(params, stats, batch, key):
        x = to_float(batch)
        (z, log_variance), stats_E = nets.update(E, params["E"], stats["E"], x, method="posterior")
        z_drawn = reparameterize(z, log_variance, key, axis)
        x_hat, stats_G = nets.update(G, params["G"], stats["G"], z_drawn)
        shared = {"x": x, "z": z, "log_variance": log_variance, "z_drawn": z_drawn, "x_hat": x_hat}
        return shared, stats | {"E": stats_E, "G": stats_G}

    return forward
