"""Priors over the embeddings, one file each, fitted on the same table whatever the method.

A file `pmjax/priors/NAME.py` defines `Prior`, a frozen dataclass whose fields are its
hyper-parameters (`config.prior_args`), and one of

    fit(z, seed) -> params         fitted at once: z [N, d] float32, params a dictionary of arrays
    game(latent_dim, optimizer, axis) -> step.MethodSpec, and trained(state) -> params
                                   trained by the loop, on the embeddings as data; with
                                   start(game, z, seed) -> MethodSpec, if nets may start from them; one
                                   whose nets then do has a true `needs_embeddings`
    take(params) -> params         nothing to do but to take it from the parameters of stage 1's
                                   nets, by name: E, G and those in `SHARED_NETS`

and `sample(params, key, num) -> z [num, d]`. A prior that maps draws of its own also has
`base(key, num) -> [num, p]`. One that is trained with another optimizer than what
`config.stage2.optimizer` says, which suits GANs, has a field for each difference and a property
`optimizer`, {argument of make_optimizer: value}.
"""

from typing import Any

from pmjax import plugins

# Nets of stage 1, where a method has them, that a workdir keeps beside E and G for priors to take.
SHARED_NETS = ("F",)


def make(name: str, args: dict[str, Any] | None = None):
    """Returns the prior `pmjax/priors/NAME.py` with the given arguments; `UserError` if unknown."""
    return plugins.load("priors", name).Prior(**(args or {}))


def is_trained(prior) -> bool:
    """Returns whether the loop trains this prior, rather than `fit`."""
    return hasattr(prior, "game")
