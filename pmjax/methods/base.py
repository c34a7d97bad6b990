"""What a method is: nets, a forward pass and one loss per objective, declared as a `MethodSpec`.

A file `pmjax/methods/NAME.py` defines `Method`, a frozen dataclass of hyper-parameters
(`config.method_args`) with a function `spec(build) -> MethodSpec`. The nets include 'E' and 'G',
and the forward pass returns the embeddings as 'z'. A method whose embeddings follow a prior of its
own names that prior in the class attribute `prior`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from pmjax import errors
from pmjax.distributed import collectives
from pmjax.nets.base import Net, Nets, family
from pmjax.nets.heads import Embedding, Posterior
from pmjax.nets.layers import LatentBatchNorm
from pmjax.nets.mlp import LatentCritic, LatentGenerator

Metrics = dict[str, Array]


class Shared(SimpleNamespace):
    """What the forward pass returned, such as s.x, s.z and s.x_hat."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"The forward pass returned no '{name}', only {list(vars(self))}.")


LossValue = tuple[Array, Metrics]

Forward = Callable[[Nets, Array, Array], dict[str, Array]]  # (nets, x, key)
Loss = Callable[[Nets, Shared, Array], LossValue]  # (nets, s, key)


@dataclasses.dataclass(frozen=True)
class Objective:
    """A loss, the nets that minimize it, and how they differ from the configured optimizer."""

    name: str  # appears in metrics, as 'loss/name'
    nets: tuple[str, ...]  # names of the nets that it updates
    loss: Loss
    updates_per_step: int = 1  # all see the same batch, each with its own key
    b1: float | None = None  # of Adam; None: the configured one
    # Learning rates of some of the nets, as factors of the configured rate.
    relative_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class MethodSpec:
    """A method as the training step sees it.

    The forward pass, from which all losses start, runs before any update, and again before each
    repeated update of one of its nets; only the first run records statistics. The gradients of the
    losses flow through it into `shared_nets`.
    """

    nets: dict[str, Net]
    forward: Forward
    shared_nets: tuple[str, ...]  # names of the nets that `forward` calls
    objectives: tuple[Objective, ...]  # in the order of their updates
    averaged: tuple[str, ...] = ()  # nets with an exponential moving average of their parameters

    def __post_init__(self) -> None:
        named = {f"objective '{objective.name}'": objective.nets for objective in self.objectives}
        named |= {"shared_nets": self.shared_nets, "averaged": self.averaged}
        for place, names in named.items():
            for name in names:
                if name not in self.nets:
                    raise errors.unknown(f"net in {place}:", name, self.nets)


def joint_spec(E: Net, G: Net, forward: Forward, loss: Loss) -> MethodSpec:
    """Returns the spec of a method with the nets E and G and one objective, which updates both."""
    objective = Objective("autoencoder", ("E", "G"), loss)
    return MethodSpec({"E": E, "G": G}, forward, ("E", "G"), (objective,))


def combine(first: MethodSpec, second: MethodSpec, averaged: tuple[str, ...]) -> MethodSpec:
    """Joins two specs whose objectives then alternate in every step.

    The second's losses use the values of the first's `forward`, and the optimizer as configured.
    """
    nets = first.nets | second.nets
    configured = (dataclasses.replace(objective, b1=None) for objective in second.objectives)
    objectives = (*first.objectives, *configured)
    return MethodSpec(nets, first.forward, first.shared_nets, objectives, averaged)


@dataclasses.dataclass(frozen=True)
class NetBuilder:
    """Builds the nets of a method from the configuration."""

    shape: tuple[int, ...]  # of one example
    latent_dim: int
    family: str  # a file in `pmjax/nets`
    net_args: dict[str, Any]  # the family's arguments
    batch_norm: dict[str, Any]  # keyword arguments of `LatentBatchNorm`
    precision: str = "float32"  # in which the nets compute; or 'bfloat16'

    def trunk(self, outputs: int) -> nn.Module:
        """Returns a module from examples [N, …] to [N, outputs]."""
        return self._module("Encoder", latent_dim=outputs)

    def latent_norm(self) -> nn.Module:
        """Returns the latent BatchNorm."""
        return LatentBatchNorm(**self.batch_norm)

    def encoder(self, norm: nn.Module | None = None) -> Net:
        """Returns E, with an optional norm of the embedding."""
        return Net(Embedding(self.trunk(self.latent_dim), norm), self.shape)

    def posterior(self) -> Net:
        """Returns E with a Gaussian posterior."""
        return Net(Posterior(self.trunk(2 * self.latent_dim)), self.shape)

    def decoder(self, wrap: Callable[[nn.Module], nn.Module] | None = None) -> Net:
        """Returns G, optionally wrapped in another module."""
        module = self._module("Decoder", shape=self.shape)
        return Net(module if wrap is None else wrap(module), (self.latent_dim,))

    def critic(self) -> Net:
        """Returns d, a critic of examples."""
        return Net(self._module("Critic"), self.shape)

    def latent_critic(self, *, width: int, blocks: int, spectral_norm: bool) -> Net:
        """Returns a critic of embeddings."""
        return Net(LatentCritic(width, blocks, spectral_norm), (self.latent_dim,))

    def mapping(self, *, width: int, blocks: int) -> Net:
        """Returns F, which maps draws of the embedding's size to embeddings."""
        return Net(LatentGenerator(self.latent_dim, width, blocks), (self.latent_dim,))

    def _module(self, kind: str, **args: Any) -> nn.Module:
        module = getattr(family(self.family), kind)
        return module(**args, dtype=self.precision, **self.net_args)


def reparameterize(mean: Array, log_variance: Array, key: Array) -> Array:
    """Draws z = mean + sqrt(variance)·noise, [N, d]."""
    noise = collectives.sample_batch(jax.random.normal, key, mean.shape)
    return mean + jnp.exp(log_variance / 2) * noise


def autoencode(nets: Nets, x: Array, key: Array) -> dict[str, Array]:
    """Computes z = E(x) and x̂ = G(z)."""
    z = nets.E(x)
    x_hat = nets.G(z)
    return {"x": x, "z": z, "x_hat": x_hat}


def autoencode_vae(nets: Nets, x: Array, key: Array) -> dict[str, Array]:
    """Computes q(z|x) = N(z, exp(log_variance)), z_drawn ~ q(z|x), and x̂ = G(z_drawn)."""
    z, log_variance = nets.E.posterior(x)
    z_drawn = reparameterize(z, log_variance, key)
    x_hat = nets.G(z_drawn)
    return {"x": x, "z": z, "log_variance": log_variance, "z_drawn": z_drawn, "x_hat": x_hat}
