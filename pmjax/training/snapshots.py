"""Models of a run that are kept beside its last one, each in a workdir of its own in the run's.

WORKDIR/best and WORKDIR/best-prior are the best while training (`periodic_eval`), WORKDIR/at-STEP and
WORKDIR/at-stage2-STEP checkpoints that were evaluated. `pmjax.load` and the commands take them as
any workdir, and train their prior when they need one.
"""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from pmjax import builders, config, model
from pmjax.errors import UserError
from pmjax.finite import require_finite
from pmjax.storage import checkpoint
from pmjax.storage.checkpoint import Checkpoints
from pmjax.storage.workdir import (
    AUTOENCODER,
    BEST,
    CONFIG,
    fingerprint,
    prior_path,
    read_embeddings,
    write_embeddings,
)
from pmjax.training.step import TrainState, init_state


def write(
    folder: Path,
    settings: ConfigDict,
    arrays: dict[str, Any],
    embeddings: Callable[[Path], np.ndarray],
    prior: dict[str, Any] | None,
    about: dict[str, Any],
) -> None:
    """Writes a workdir that has all that can be had of a model, in place of what is there.

    Args:
      folder: the new workdir.
      settings: the run's config.
      arrays: `model.arrays_of` its stage 1.
      embeddings: (a workdir with the autoencoder) -> those of the training set.
      prior: the arrays of the run's own prior, if they are there.
      about: which model it is.
    """
    fresh = folder.with_name(f".{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config.save(settings, fresh / CONFIG)
    checkpoint.write_arrays(fresh / AUTOENCODER, arrays)
    write_embeddings(fresh, embeddings(fresh))
    if prior:
        checkpoint.write_arrays(prior_path(fresh, settings.prior), prior)
    (fresh / f"{BEST}.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def own_prior(settings: ConfigDict, state: TrainState) -> dict[str, Any] | None:
    """Returns the arrays of the run's prior that a state of stage 1 has, if it trains that too."""
    return builders.prior(settings).export(state) if settings.schedule == "joint" else None


def from_checkpoint(workdir: Path, which: str, *, say: Callable[[str], None]) -> Path:
    """Returns a workdir of the model that a checkpoint holds, and makes it if need be.

    Args:
      workdir: of a run, which may have come to any step.
      which: a step of stage 1 or 'latest', or 'stage2/STEP' or 'stage2/latest'.
      say: is told which step it is.

    Raises:
      UserError: if there is no such checkpoint, which it lists, or if it is damaged.
    """
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} is not a workdir of pmjax: it has no {CONFIG}.")
    settings = config.read(workdir / CONFIG)
    stage, _, step = f"stage1/{which}".removeprefix("stage1/").rpartition("/")
    stage = stage or "stage1"
    directory = workdir / "checkpoints" / stage
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())
    if stage not in _PARTS or not steps or step not in ("latest", *map(str, steps)):
        raise UserError(f"There is no checkpoint {which} in {workdir}. {_listed(workdir)}")
    step = steps[-1] if step == "latest" else int(step)
    folder = workdir / (f"at-{step}" if stage == "stage1" else f"at-{stage}-{step}")
    game, data, parts = _PARTS[stage](settings, workdir)
    like = jax.eval_shape(partial(init_state, game), jax.random.key(0))
    checkpoints = Checkpoints(directory, keep=settings.checkpoint.keep)
    try:
        state, info = checkpoints.read(step, like)
    finally:
        checkpoints.close()
    if info.get("data") != data:
        raise UserError(
            f"The checkpoint {directory / str(step)} belongs to other training data "
            f"({info.get('data')}, now {data}). Bring the old data back."
        )
    about = {"step": step, "by": "checkpoint", "digest": info["digest"]}
    try:
        same = json.loads((folder / f"{BEST}.json").read_text()) == about
    except (OSError, ValueError):
        same = False
    if same:  # with the priors and the metrics that it has by now
        config.save(settings, folder / CONFIG)
    else:
        arrays, embeddings, prior = parts(state.replace(key=jax.random.key_data(state.key)))
        write(folder, settings, arrays, embeddings, prior, about)
    say(f"The model of step {step} of stage {stage[-1]} is in {folder}.")
    return folder


def _of_stage1(settings: ConfigDict, workdir: Path):
    """Returns the stage's game, its data's fingerprint, and (state) -> three parts of `write`."""
    data = builders.dataset(settings, "train")
    shape = data.data.shape[1:]

    def embeddings(fresh: Path) -> np.ndarray:
        z = model.load(fresh).encode(data.data)
        require_finite(z, "The embedding of training example", "Take an earlier checkpoint.")
        return z

    def parts(state: TrainState):
        return model.arrays_of(state, shape), embeddings, own_prior(settings, state)

    return builders.stage1_game(settings, shape), data.fingerprint, parts


def _of_stage2(settings: ConfigDict, workdir: Path):
    """Likewise, of the stage that trains the prior."""
    z = read_embeddings(workdir)
    arrays = checkpoint.read_arrays(workdir / AUTOENCODER)

    def parts(state: TrainState):
        return arrays, lambda fresh: z, builders.prior(settings).export(state)

    return builders.stage2_game(settings, z=z), fingerprint(z), parts


_PARTS = {"stage1": _of_stage1, "stage2": _of_stage2}


def _listed(workdir: Path) -> str:
    """Tells which checkpoints a workdir has."""
    there = []
    for stage, prefix in (("stage1", ""), ("stage2", "stage2/")):
        names = [p.name for p in (workdir / "checkpoints" / stage).glob("*") if p.name.isdigit()]
        there += [f"{prefix}latest"] if names else []
        there += [f"{prefix}{name}" for name in sorted(names, key=int)]
    return f"There are: {', '.join(there) or 'none'}."
