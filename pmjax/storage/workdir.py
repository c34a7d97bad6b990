"""A run's directory: which files it has, and which config it belongs to.

config.json            the complete config
checkpoints/STAGE/     training states, from which the same command resumes
autoencoder.msgpack    E and G as trained
embeddings.npy         E(x) of the training set, [N, d]
priors/NAME.msgpack    a prior of the embeddings
priors/NAME/           the training of a prior that is not the run's own: checkpoints, events
metrics.json, report.html, figures/
history.jsonl, events/ losses and metrics during training
best/, best-prior/     workdirs of the best model during stage 1 and stage 2, with best.json
at-STEP/, at-stage2-STEP/  workdirs of the models of evaluated checkpoints
logs/host-I.log        log lines of the processes other than process 0
"""

import contextlib
import hashlib
import io
import itertools
import os
import secrets
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from pmjax import config as configs
from pmjax import schema
from pmjax.distributed.processes import ProcessGroup, processes
from pmjax.errors import UserError
from pmjax.storage import atomic
from pmjax.storage.lock import lock as lock_file

CONFIG = "config.json"
AUTOENCODER = "autoencoder.msgpack"
EMBEDDINGS = "embeddings.npy"
BEST = "best"
SNAPSHOT = "best.json"  # in every snapshot, also of a checkpoint (at-STEP)
BEST_PRIOR = "best-prior"


def prior_path(workdir: Path, name: str) -> Path:
    """Returns the path of a prior's arrays."""
    return workdir / "priors" / f"{name}.msgpack"


def read_embeddings(workdir: Path) -> np.ndarray:
    """Returns the training set's embeddings [N, d] of a run."""
    try:
        content = (workdir / EMBEDDINGS).read_bytes()
        file = io.BytesIO(content)
        z = np.load(file, allow_pickle=False)
        digest = content[file.tell() :]  # earlier versions wrote none
        if digest and digest != hashlib.sha256(content[: file.tell()]).digest():
            raise ValueError("its contents changed after it was written")
        return z
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{workdir / EMBEDDINGS} cannot be read ({error}). Run the training "
            f"command again: it writes the file if it is missing."
        ) from error


def fingerprint(z: np.ndarray) -> str:
    """Returns the hash that identifies embeddings."""
    return hashlib.sha256(z.tobytes()).hexdigest()


def write_embeddings(workdir: Path, z: np.ndarray) -> None:
    """Writes the training set's embeddings [N, d], then a digest, which `np.load` ignores."""
    file = io.BytesIO()
    np.save(file, z, allow_pickle=False)
    content = file.getvalue() + hashlib.sha256(file.getvalue()).digest()
    atomic.write(workdir / EMBEDDINGS, content, still_intact="Checkpoints are intact.")


def training_config(settings: ConfigDict) -> dict[str, Any]:
    """Returns {dotted name: value} of the keys that decide what is trained."""
    return {n: v for n, v in configs.flat(settings).items() if not schema.is_free(n)}


def digest(settings: ConfigDict) -> str:
    """Returns a hash of the values that decide what is trained."""
    return _hash(training_config(settings))


def diff(old: dict[str, Any] | str, new: dict[str, Any]) -> str:
    """Returns the keys in which two training configs differ, one per line; '' if they agree.

    Where the old one (of a workdir or a checkpoint) lacks a key, its version did as `schema.ADDED`
    says. Early versions stored its `digest` only.
    """
    if isinstance(old, str):
        added = [name for name, value in schema.ADDED.items() if new.get(name) == value]
        for count in range(len(added) + 1):
            for without in itertools.combinations(added, count):
                if _hash({n: v for n, v in new.items() if n not in without}) == old:
                    return ""
        return f"  the config's hash: {old} there, {_hash(new)} now"
    old = {n: v for n, v in schema.ADDED.items() if n in new} | old
    names = [n for n in sorted(old | new) if old.get(n) != new.get(n) and n not in schema.REMOVED]
    return "\n".join(f"  config.{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in names)


def require_same(found: dict[str, Any], expected: dict[str, Any], stage: str) -> None:
    """Raises `UserError` if a checkpoint has another config or other data than the run."""
    for name, value in expected.items():
        if name == "config" and "config" in found:
            if listed := diff(found["config"], value):
                raise UserError(
                    f"The checkpoint of {stage} belongs to another config:\n{listed}\n"
                    f"Use a new --workdir, or restore the values listed as 'there'."
                )
        elif found.get(name) != value:
            raise UserError(
                f"The checkpoint of {stage} belongs to other {name} ({found.get(name)}, now "
                f"{value}). Use a new --workdir, or restore the old {name}."
            )


def _hash(values: dict[str, Any]) -> str:
    return hashlib.sha256(repr(sorted(values.items())).encode()).hexdigest()[:16]


def shared_config(settings: ConfigDict) -> dict[str, Any]:
    """Returns what all processes must agree on: versions, and the config except local paths."""
    local = {name for name, key in schema.KEYS.items() if key.local}
    values = {f"config.{n}": v for n, v in configs.flat(settings).items() if n not in local}
    packages = ("pmjax", "jax", "flax")
    return values | {f"version of {name}": metadata.version(name) for name in packages}


def check_shared(workdir: Path, group: ProcessGroup) -> None:
    """Raises `UserError` unless all hosts see the same workdir as process 0."""
    if group.count == 1:
        return
    mark, token = workdir / ".hosts", group.all_gather_object("the workdir", secrets.token_hex())[0]
    group.run_on_primary("marking the workdir", lambda: mark.write_text(token))
    seen = group.all_gather_object("the mark", mark.is_file() and mark.read_text() == token)
    group.run_on_primary("the mark", mark.unlink)
    if not all(seen):
        blind = processes([i for i, sees in enumerate(seen) if not sees])
        raise UserError(
            f"{blind.capitalize()} and process 0 do not see the same workdir {workdir}: it must "
            f"be on a file system that all hosts share."
        )


@contextlib.contextmanager
def lock(workdir: Path, group: ProcessGroup | None = None) -> Iterator[None]:
    """Locks a workdir against other runs, as process 0 of the group; creates it if necessary.

    Raises:
      UserError: if another run holds the lock (names its process and host), or the workdir cannot
        be written.
    """
    if group and group.index:
        yield
        return
    require_writable(workdir)
    what = f"the workdir {workdir}"
    refuse = f"uses {what}. Wait for it, stop it (SIGTERM saves), or use another --workdir."
    with lock_file(workdir / "run", what, refuse=refuse):
        yield


def require_writable(workdir: Path) -> None:
    """Makes a workdir; raises `UserError` if files or checkpoints cannot be written there."""
    try:
        os.fsencode(workdir.absolute()).decode()
    except UnicodeDecodeError as error:
        raise UserError(
            f"Checkpoints cannot be written to {workdir.absolute()}, whose name is not UTF-8. Use "
            "another --workdir."
        ) from error
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written ({error.strerror}).") from error


def claim(settings: ConfigDict, workdir: Path) -> None:
    """Writes this config into the workdir, unless the workdir belongs to another config.

    Raises:
      UserError: if the workdir cannot be written, has a snapshot of another run, or belongs to
        another config; names the differing keys.
    """
    require_writable(workdir)
    if (workdir / SNAPSHOT).is_file():
        raise UserError(
            f"{workdir} has a snapshot of the run in {workdir.resolve().parent}, which is the "
            f"--workdir to resume training with. Use that one, or another."
        )
    path = workdir / CONFIG
    if path.is_file():
        if listed := diff(training_config(configs.read(path)), training_config(settings)):
            raise UserError(
                f"The workdir {workdir} belongs to another config:\n{listed}\n"
                f"Use another --workdir, or restore the values listed as 'there'."
            )
    part = path.with_name(f"{CONFIG}.part")
    configs.save(settings, part)
    part.replace(path)
