"""Writes the model of a training state as a workdir of its own, inside the run's workdir.

WORKDIR/best and WORKDIR/best-prior are the best models during training (`periodic_eval`);
WORKDIR/at-STEP and WORKDIR/at-stage2-STEP are checkpoints that were evaluated.
"""

import contextlib
import dataclasses
import json
import logging
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pmjax import builders, config, model
from pmjax.errors import UserError
from pmjax.finite import require_finite
from pmjax.priors.base import shared_nets
from pmjax.storage import checkpoint
from pmjax.storage.checkpoint import Checkpoints
from pmjax.storage.workdir import (
    AUTOENCODER,
    CONFIG,
    SNAPSHOT,
    fingerprint,
    prior_path,
    read_embeddings,
    write_embeddings,
)
from pmjax.training.optimizers import stage1_optimizer, stage2_optimizer
from pmjax.training.step import TrainState, init_state

log = logging.getLogger(__name__)

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The arrays of a run's model at one step, on the host."""

    autoencoder: Arrays  # as `model.Model` takes them
    own_prior: Arrays | None  # those of the run's own prior (None: not trained yet)


def of_stage1(settings: ConfigDict, state: TrainState, shape: tuple[int, ...]) -> Snapshot:
    """Returns the model of a state of stage 1, whose examples have the given shape."""
    own = prior_arrays(settings, state) if settings.schedule == "joint" else None
    return Snapshot(autoencoder_arrays(state, shape), own)


def of_stage2(settings: ConfigDict, state: TrainState, workdir: Path) -> Snapshot:
    """Returns the model of a state of stage 2, with the autoencoder of the finished stage 1."""
    return Snapshot(checkpoint.read_arrays(workdir / AUTOENCODER), prior_arrays(settings, state))


def autoencoder_arrays(state: TrainState, shape: tuple[int, ...]) -> Arrays:
    """Returns E, G and the nets that priors share, averaged where the state has an average."""
    params = state.params | state.ema
    names = [name for name in ("E", "G", *shared_nets()) if name in params]
    chosen = {name: params[name] for name in names}
    stats = {name: state.stats[name] for name in ("E", "G")}
    return jax.device_get({"params": chosen, "stats": stats}) | {"shape": np.asarray(shape)}


def prior_arrays(settings: ConfigDict, state: TrainState, name: str | None = None) -> Arrays:
    """Returns the arrays of a prior that the state trains (None: the config's own)."""
    params, stats = jax.device_get((state.params | state.ema, state.stats))
    return builders.trained_prior(settings, name).export(params, stats)


def write(
    folder: Path,
    settings: ConfigDict,
    snapshot: Snapshot,
    embeddings: np.ndarray,
    about: dict[str, Any],
) -> None:
    """Replaces a folder by a workdir of a model.

    It also holds the embeddings of the training set [N, d], and in the file SNAPSHOT what the model
    is.
    """
    fresh = folder.with_name(f".{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config.save(settings, fresh / CONFIG)
    checkpoint.write_arrays(fresh / AUTOENCODER, snapshot.autoencoder)
    write_embeddings(fresh, embeddings)
    if snapshot.own_prior:
        checkpoint.write_arrays(prior_path(fresh, settings.prior), snapshot.own_prior)
    (fresh / SNAPSHOT).write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def read_about(folder: Path) -> dict[str, Any]:
    """Returns what `write` recorded about a model: {} if it is missing or damaged."""
    try:
        return json.loads((folder / SNAPSHOT).read_text())
    except (OSError, ValueError):
        return {}


def from_checkpoint(workdir: Path, which: str) -> Path:
    """Returns a workdir of the model in a checkpoint, which it writes unless it is there.

    Args:
      workdir: of a run, finished or not.
      which: a step of stage 1 or 'latest', or 'stage2/STEP' or 'stage2/latest'.

    Raises:
      UserError: if there is no such checkpoint (lists those there are), or if it is damaged.
    """
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} is not a workdir of pmjax: it has no {CONFIG}.")
    settings = config.read(workdir / CONFIG)
    stage, step = _find(workdir, which)
    if stage == "stage1":
        data = builders.dataset(settings, "train")
        shape, data_hash = data.data.shape[1:], data.fingerprint
        spec, optimizer = builders.stage1_spec(settings, shape), stage1_optimizer(settings)
        folder = workdir / f"at-{step}"
    else:
        z = read_embeddings(workdir)
        data_hash = fingerprint(z)
        spec, optimizer = builders.stage2_spec(settings, z=z), stage2_optimizer(settings)
        folder = workdir / f"at-{stage}-{step}"
    directory = workdir / "checkpoints" / stage
    like = jax.eval_shape(partial(init_state, spec, optimizer), jax.random.key(0))
    with contextlib.closing(Checkpoints(directory, keep=settings.checkpoint.keep)) as checkpoints:
        state, info = checkpoints.read(step, like)
    if info.get("data") != data_hash:
        raise UserError(
            f"The checkpoint {directory / str(step)} belongs to other training data "
            f"({info.get('data')}, now {data_hash}). Restore the original data."
        )
    about = {"step": step, "by": "checkpoint", "digest": info["digest"]}
    if read_about(folder) == about:  # with the priors and metrics that were added to it
        config.save(settings, folder / CONFIG)
    elif stage == "stage1":
        snapshot = of_stage1(settings, state, shape)
        z = model.Model(settings, snapshot.autoencoder).encode(data.data)
        require_finite(z, "The embedding of training example", "Choose an earlier checkpoint.")
        write(folder, settings, snapshot, z, about)
    else:
        write(folder, settings, of_stage2(settings, state, workdir), z, about)
    log.info("The model of step %d of stage %s is in %s.", step, stage[-1], folder)
    return folder


def _find(workdir: Path, which: str) -> tuple[str, int]:
    """Returns stage and step of a checkpoint; raises `UserError` if there is none."""
    found = {}
    for stage, prefix in ("stage1", ""), ("stage2", "stage2/"):
        names = [path.name for path in (workdir / "checkpoints" / stage).glob("*")]
        if steps := sorted(int(name) for name in names if name.isdigit()):
            found[f"{prefix}latest"] = stage, steps[-1]
            found |= {f"{prefix}{step}": (stage, step) for step in steps}
    if (name := which.removeprefix("stage1/")) in found:
        return found[name]
    raise UserError(
        f"There is no checkpoint {which} in {workdir}. There are: {', '.join(found) or 'none'}."
    )
