"""Priors over the embeddings, one file each, fitted on the same table whatever the method.

A file `pmjax/priors/NAME.py` defines `Prior`, a frozen dataclass whose fields are its
hyper-parameters (`config.prior_args`), and one of

    fit(z, seed) -> params         fitted at once: z [N, d] float32, params a dictionary of arrays
    game(latent_dim, optimizer, axis) -> step.Game, and trained(state) -> params
                                   trained by the loop, on the embeddings as data

and `sample(params, key, num) -> z [num, d]`. A prior that maps draws of its own also has
`base(key, num) -> [num, p]`.
"""

from typing import Any

from pmjax import plugins


def make(name: str, args: dict[str, Any] | None = None):
    """Returns the prior `pmjax/priors/NAME.py` with the given arguments; `UserError` if unknown."""
    return plugins.load("priors", name, provides="Prior").Prior(**(args or {}))


def is_trained(prior) -> bool:
    """Returns whether the loop trains this prior, rather than `fit`."""
    return hasattr(prior, "game")
