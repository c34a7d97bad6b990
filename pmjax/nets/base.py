"""What a net is, how it is initialized and called, and nets bound to their parameters."""

from collections.abc import Callable, Mapping
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, NamedTuple

import jax
from flax import linen as nn
from jax import Array

from pmjax import plugins
from pmjax.distributed import collectives

Params = dict[str, Any]
Stats = dict[str, Any]


class Net(NamedTuple):
    """A Flax module and the shape of one example of its input."""

    module: nn.Module
    input_shape: tuple[int, ...]


class Critic(nn.Module):
    """Base class of the families' critics, whose method `features` also returns the number."""

    # Whether a call also accepts a tuple of batches, and returns a tuple.
    supports_multi_batch: ClassVar[bool] = False

    def __call__(self, x: Any, *, train: bool) -> Any:
        """Maps examples [N, …] to one number each [N]."""
        return self.features(x, train=train)[1]


def family(name: str) -> ModuleType:
    """Returns the module `pmjax.nets.NAME`; raises `UserError` for an unknown name."""
    return plugins.load("nets", name)


def init(module: nn.Module, key: Array, *inputs: Array) -> tuple[Params, Stats]:
    """Initializes a net; returns its parameters and its statistics (all other collections).

    Spectral norm starts after 15 power iterations: a deep net whose layers all underestimate
    their singular values would start with outputs in the hundreds.
    """
    stats: Stats = dict(module.init(key, *inputs, train=True))
    params: Params = stats.pop("params", {})
    if "spectral" in stats:

        def iterate(_, spectral):
            return update(module, params, stats | {"spectral": spectral}, *inputs)[1]["spectral"]

        stats["spectral"] = jax.lax.fori_loop(0, 15, iterate, stats["spectral"])
    return params, stats


def apply(
    module: nn.Module,
    params: Params,
    stats: Stats,
    *inputs: Any,
    train: bool = False,
    method: str | None = None,
) -> Any:
    """Calls a net, by default in inference mode, and discards changes of its statistics."""
    return update(module, params, stats, *inputs, train=train, method=method)[0]


def update(
    module: nn.Module,
    params: Params,
    stats: Stats,
    *inputs: Any,
    train: bool = True,
    method: str | None = None,
) -> tuple[Any, Stats]:
    """Calls a net or one of its methods; returns the output and the new statistics."""
    variables = {"params": params, **stats}
    result: Any = module.apply(variables, *inputs, train=train, mutable=list(stats), method=method)
    return result


class BoundNet:
    """A net with its parameters and statistics, called in training mode: `nets.E(x)`.

    A method of the module is called by its name: `nets.E.posterior(x)`. `stats` are the statistics
    after the calls so far.
    """

    def __init__(self, module: nn.Module, params: Params, stats: Stats):
        """Binds a module to its parameters and statistics."""
        self.params, self.stats = params, stats
        self._module, self._initial_stats = module, stats

    def __call__(self, *inputs: Any, update_stats: bool = True, method: str | None = None) -> Any:
        """Applies the net.

        Args:
          *inputs: of the net.
          update_stats: whether to record the new statistics, from which the next call continues. If
            not, the call sees the statistics that the net was bound to.
          method: of the module; None: its `__call__`.
        """
        stats = self.stats if update_stats else self._initial_stats
        output, stats = update(self._module, self.params, stats, *inputs, method=method)
        if update_stats:
            self.stats = stats
        return output

    def __getattr__(self, name: str) -> Callable:
        getattr(type(self._module), name)  # AttributeError if the module has no such method
        return partial(self, method=name)

    def on_each(self, first: Array, *others: Array) -> tuple[Array, ...]:
        """Applies a critic to several batches; records the statistics of a single call.

        On TPUs the critic makes one pass over all batches if it can: weights are then normalized
        once, and gradients are summed before they flow back through the norm. Elsewhere one pass
        gains little and would round differently.
        """
        if collectives.on_tpus() and self._module.supports_multi_batch:
            return self((first, *others))
        return (self(first), *(self(x, update_stats=False) for x in others))


class Nets:
    """The nets of a method in one pass, each a `BoundNet`: `nets.E`, `nets.G`.

    Attributes:
      used: names of the nets that the pass has asked for.
    """

    def __init__(
        self, nets: Mapping[str, Net], params: Mapping[str, Params], stats: Mapping[str, Stats]
    ):
        """Binds all nets to their parameters and statistics, given by the nets' names."""
        self.used: set[str] = set()
        self._nets = {n: BoundNet(net.module, params[n], stats[n]) for n, net in nets.items()}

    def __getattr__(self, name: str) -> BoundNet:
        try:
            net = self._nets[name]
        except KeyError:
            raise AttributeError(f"There is no net '{name}', only {list(self._nets)}.") from None
        self.used.add(name)
        return net

    @property
    def stats(self) -> dict[str, Stats]:
        """All nets' statistics after the calls so far."""
        return {name: net.stats for name, net in self._nets.items()}
