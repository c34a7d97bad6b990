"""The Python interface: what `import pmjax` offers."""

import os
from functools import partial

from pmjax import config, paths
from pmjax.datasets.batches import to_float, to_uint8
from pmjax.errors import UserError
from pmjax.model import Model
from pmjax.storage import checkpoint
from pmjax.storage.workdir import AUTOENCODER, CONFIG
from pmjax.training import stages

__all__ = ["Model", "UserError", "load", "to_float", "to_uint8"]


def load(workdir: str | os.PathLike) -> Model:
    """Loads the model that `pmjax.main` has trained in a workdir.

    A prior that the workdir does not have yet is fitted, or trained, at its first use.

    Raises:
      UserError: if there is no model, or if one of its files is damaged.
    """
    workdir = paths.local(workdir)
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} is not a workdir of pmjax: it has no {CONFIG}.")
    settings = config.read(workdir / CONFIG)
    path = workdir / AUTOENCODER
    if not path.is_file():
        raise UserError(
            f"{workdir} has no trained autoencoder yet. Continue with the training command: "
            f"python -m pmjax.main --workdir={workdir} --config=…\n"
            f"Or evaluate a checkpoint: python -m pmjax.evaluate --checkpoint=latest."
        )
    fit_prior = partial(stages.fit_prior, settings, workdir)
    return Model(settings, checkpoint.read_arrays(path), workdir=workdir, fit_prior=fit_prior)
