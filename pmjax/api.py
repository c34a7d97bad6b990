"""The Python interface: what `import pmjax` offers."""

import os

from pmjax import model
from pmjax.datasets.batches import to_float, to_uint8
from pmjax.errors import UserError
from pmjax.model import Model
from pmjax.training import stages

__all__ = ["Model", "UserError", "load", "to_float", "to_uint8"]


def load(workdir: str | os.PathLike) -> Model:
    """Loads the model that `pmjax.main` has trained in a workdir.

    A prior that the workdir does not have yet is fitted, or trained, at its first use.

    Raises:
      UserError: if there is no model, or if one of its files is damaged.
    """
    return model.load(workdir, fit_prior=stages.fit_prior)
