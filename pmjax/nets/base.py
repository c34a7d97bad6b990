"""Neural nets: a family is one file that defines `Encoder`, `Decoder` and `Critic`.

    Encoder(latent_dim=…, **common, **args)(x) -> [N, latent_dim]
    Decoder(shape=…, **common, **args)(z)      -> [N, *shape], images within [-1, 1]
    Critic(**common, **args)(x)                -> [N]
    Critic.features(x)                         -> its last features [N, k], and [N]

`args` are the family's own (`config.nets_args`); all three take the same ones. `common` are
`dtype`, in which the net computes (parameters, statistics and outputs are float32), and `axis`,
the name of the batch axis under pmap. A net is called with `train`, and may keep mutable
collections, which the training state carries. A net that takes a tuple of batches in the place of
one, and gives as many outputs, has a true `supports_multi_batch`.
"""

from typing import Any

import jax
from flax import linen as nn

from pmjax import plugins
from pmjax.distributed import collectives

_SPECTRAL_TURNS = 15
Params = dict[str, Any]
Stats = dict[str, Any]


def family(name: str):
    """Returns the module `pmjax.nets.NAME`; an unknown name is a `UserError`."""
    return plugins.load("nets", name)


def init(net: nn.Module, key: jax.Array, *inputs: jax.Array) -> tuple[Params, Stats]:
    """Initialises one net: its parameters, and its mutable collections.

    The power iterations of spectral norm make their first turns here: a deep net whose layers all
    underestimate their singular values starts with outputs of hundreds.
    """
    stats = net.init(key, *inputs, train=True)
    params = stats.pop("params", {})
    if "spectral" in stats:

        def turn(_, spectral):
            return update(net, params, stats | {"spectral": spectral}, *inputs)[1]["spectral"]

        stats["spectral"] = jax.lax.fori_loop(0, _SPECTRAL_TURNS, turn, stats["spectral"])
    return params, stats


def apply(
    net: nn.Module,
    params: Params,
    stats: Stats,
    *inputs,
    train: bool = False,
    method: str | None = None,
):
    """Calls a net and leaves its mutable collections as they are."""
    output, _ = update(net, params, stats, *inputs, train=train, method=method)
    return output


def update(
    net: nn.Module,
    params: Params,
    stats: Stats,
    *inputs,
    train: bool = True,
    method: str | None = None,
):
    """Calls a net, or one of its methods; returns the output and the collections after the call."""
    variables = {"params": params, **stats}
    return net.apply(variables, *inputs, train=train, mutable=list(stats), method=method)


def update_on_several(
    net: nn.Module, params: Params, stats: Stats, *batches: jax.Array
) -> tuple[tuple[jax.Array, ...], Stats]:
    """Calls a net on each of several batches, in training mode.

    On TPUs in one pass, if the net can: what it makes of its weights, such as spectral norm, is
    then made once, and gradients are added before they go back through it, not behind. Elsewhere
    that gains little, and they would be rounded otherwise.

    Returns the outputs, and the collections after a single call.
    """
    if collectives.on_tpus() and getattr(net, "supports_multi_batch", False):
        return update(net, params, stats, batches)
    first, after = update(net, params, stats, batches[0])
    return (first, *(apply(net, params, stats, x, train=True) for x in batches[1:])), after
