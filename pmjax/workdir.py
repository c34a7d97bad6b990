"""A run's directory: what lies where, and whose it is.

config.json            the complete config
checkpoints/STAGE/     training states, from which the same command goes on
autoencoder.msgpack    E and G as trained
embeddings.npy         E(x) of the training set, [N, d]
priors/NAME.msgpack    what is fitted to the embeddings
priors/NAME/           the training of a prior that is not the run's own: checkpoints, events
metrics.json, report.html, figures/, history.jsonl, events.*
logs/host-I.log        what processes other than the first have to say
"""

import hashlib
import secrets
from importlib import metadata
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from pmjax import config as configs
from pmjax.errors import UserError
from pmjax.hosts import Hosts, processes

CONFIG = "config.json"
AUTOENCODER = "autoencoder.msgpack"
EMBEDDINGS = "embeddings.npy"

# Keys that may differ between hosts: each can have its files elsewhere.
_PATHS = ("data.path", "data.manual_dir", "data.cache_dir")

# Keys that may change between two runs of one workdir: they do not change what is trained.
_FREE = (
    "eval.",
    "log_every",
    "profile",
    "checkpoint.",
    "parallel",
    "devices",
    "stage2.devices",
    "data.device_budget_gb",
    "data.verify",
    *_PATHS,
)


def prior_path(workdir: Path, name: str) -> Path:
    """Returns where a workdir keeps a fitted prior."""
    return workdir / "priors" / f"{name}.msgpack"


def read_embeddings(workdir: Path) -> np.ndarray:
    """Returns the training set's embeddings [N, d] that a run has left."""
    try:
        return np.load(workdir / EMBEDDINGS, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(
            f"{workdir / EMBEDDINGS} cannot be read ({error}). Run the training "
            f"command again: it writes what is missing."
        ) from error


def write_embeddings(workdir: Path, z: np.ndarray) -> None:
    """Keeps the training set's embeddings [N, d]; at once or not at all."""
    part = workdir / f"part-{EMBEDDINGS}"
    np.save(part, z)
    part.replace(workdir / EMBEDDINGS)


def digest(settings: ConfigDict) -> str:
    """Returns a hash of the values that decide what is trained."""
    return hashlib.sha256(repr(sorted(_binding(settings).items())).encode()).hexdigest()[:16]


def facts(settings: ConfigDict) -> dict:
    """Returns what has to be the same on all hosts: the config less paths, and versions."""
    values = configs.flat(settings)
    versions = {f"version of {name}": metadata.version(name) for name in ("pmjax", "jax", "flax")}
    return {f"config.{n}": v for n, v in values.items() if n not in _PATHS} | versions


def check_shared(workdir: Path, hosts: Hosts) -> None:
    """Raises `UserError` unless all hosts see the workdir that process 0 has."""
    if hosts.count == 1:
        return
    mark, token = workdir / ".hosts", hosts.exchange("the workdir", secrets.token_hex())[0]
    hosts.first("marking the workdir", lambda: mark.write_text(token))
    seen = hosts.exchange("the mark", mark.is_file() and mark.read_text() == token)
    hosts.first("the mark", mark.unlink)
    if not all(seen):
        blind = processes([i for i, sees in enumerate(seen) if not sees])
        raise UserError(
            f"{blind.capitalize()} and process 0 do not see the same workdir {workdir}: it must "
            f"lie on a file system that all hosts share."
        )


def claim(settings: ConfigDict, workdir: Path) -> None:
    """Makes the workdir this config's, or refuses it if it is another's.

    Raises:
      UserError: if it cannot be written, or belongs to another config; names the differing keys.
    """
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        probe = workdir / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"The workdir {workdir} cannot be written ({error.strerror}).") from error
    path = workdir / CONFIG
    if path.is_file():
        old, new = _binding(configs.read(path)), _binding(settings)
        differing = [name for name in sorted(old | new) if old.get(name) != new.get(name)]
        if differing:
            listed = "\n".join(
                f"  config.{n}: {old.get(n)!r} there, {new.get(n)!r} now" for n in differing
            )
            raise UserError(
                f"The workdir {workdir} belongs to another config:\n{listed}\n"
                f"Take another --workdir, or the values that are there."
            )
    configs.save(settings, path)


def _binding(settings: ConfigDict) -> dict:
    return {n: v for n, v in configs.flat(settings).items() if not n.startswith(_FREE)}
