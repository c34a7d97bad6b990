"""Models of a run that are kept beside its last one, each in a workdir of its own in the run's.

WORKDIR/best is the best while training (`midway`), WORKDIR/at-STEP a checkpoint that was evaluated.
`pmjax.load` and the commands take them as any workdir, and train their prior when they need one.
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

from pmjax import build, checkpoint, config, model
from pmjax.checkpoint import Checkpoints
from pmjax.errors import UserError
from pmjax.finite import require_finite
from pmjax.step import TrainState, init_state
from pmjax.workdir import AUTOENCODER, BEST, CONFIG, prior_path, write_embeddings


def write(
    folder: Path,
    settings: ConfigDict,
    state: TrainState,
    shape: tuple[int, ...],
    embeddings: Callable[[Path], np.ndarray],
    about: dict[str, Any],
) -> None:
    """Writes a workdir that has all that can be had of a state, in place of what is there.

    Args:
      folder: the new workdir.
      settings: the run's config.
      state: of its stage 1, on the host.
      shape: of an example.
      embeddings: (a workdir with the autoencoder) -> those of the training set.
      about: which state it is.
    """
    fresh = folder.with_name(f".{folder.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    config.save(settings, fresh / CONFIG)
    checkpoint.write_arrays(fresh / AUTOENCODER, model.arrays_of(state, shape))
    write_embeddings(fresh, embeddings(fresh))
    if settings.schedule == "joint":
        arrays = build.prior(settings).trained(state)
        checkpoint.write_arrays(prior_path(fresh, settings.prior), arrays)
    (fresh / f"{BEST}.json").write_text(json.dumps(about, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    fresh.rename(folder)


def from_checkpoint(workdir: Path, step: str, *, say: Callable[[str], None]) -> Path:
    """Returns a workdir of the model that a checkpoint of stage 1 holds, and makes it if need be.

    Args:
      workdir: of a run, which may have come to any step.
      step: a number, or 'latest'.
      say: is told which step it is.

    Raises:
      UserError: if there is no such checkpoint, which it lists, or if it is damaged.
    """
    if not (workdir / CONFIG).is_file():
        raise UserError(f"{workdir} is not a workdir of pmjax: it has no {CONFIG}.")
    settings = config.read(workdir / CONFIG)
    directory = workdir / "checkpoints" / "stage1"
    steps = sorted(int(p.name) for p in directory.glob("*") if p.name.isdigit())
    if not steps or step not in ("latest", *map(str, steps)):
        listed = ", ".join(["latest", *map(str, steps)]) if steps else "none"
        raise UserError(f"There is no checkpoint {step} in {directory}. There are: {listed}.")
    step = steps[-1] if step == "latest" else int(step)
    folder = workdir / f"at-{step}"
    data = build.dataset(settings, "train")
    game = build.stage1_game(settings, data.data.shape[1:])
    like = jax.eval_shape(partial(init_state, game), jax.random.key(0))
    checkpoints = Checkpoints(directory, keep=settings.checkpoint.keep)
    try:
        state, info = checkpoints.read(step, like)
    finally:
        checkpoints.close()
    if info.get("data") != data.fingerprint:
        raise UserError(
            f"The checkpoint {directory / str(step)} belongs to other training data "
            f"({info.get('data')}, now {data.fingerprint}). Bring the old data back."
        )
    state = state.replace(key=jax.random.key_data(state.key))
    about = {"step": step, "by": "checkpoint", "digest": info["digest"]}
    try:
        same = json.loads((folder / f"{BEST}.json").read_text()) == about
    except (OSError, ValueError):
        same = False
    if same:  # with the priors and the metrics that it has by now
        config.save(settings, folder / CONFIG)
    else:

        def embeddings(fresh: Path) -> np.ndarray:
            z = model.load(fresh).encode(data.data)
            require_finite(z, "The embedding of training example", "Take an earlier checkpoint.")
            return z

        write(folder, settings, state, data.data.shape[1:], embeddings, about)
    say(f"The model of step {step} of stage 1 is in {folder}.")
    return folder
