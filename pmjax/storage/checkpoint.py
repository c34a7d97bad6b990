"""Checkpoints of a training state: written asynchronously, rotated, and verified when read.

Orbax writes and reads them. It does not notice changed bytes, so that a damaged disk would continue
a run with wrong weights; the digests of this module do.
"""

import contextlib
import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from pmjax.distributed import host_memory
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError
from pmjax.finite import require_finite_arrays
from pmjax.storage import atomic, resource_errors

log = logging.getLogger(__name__)

FILES = "SHA256SUMS"  # of a checkpoint: digests of its files
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
# Orbax writes these last. They hold times and names of classes, nothing of the state.
_LATE = ("commit_success.txt", "_CHECKPOINT_METADATA")


class HasStep(Protocol):
    """A tree of arrays with a step."""

    @property
    def step(self) -> Any:
        """The number of steps made."""


State = TypeVar("State", bound=HasStep)


class Checkpoints:
    """The checkpoints of one stage.

    Each holds the state, a dictionary that identifies its run, a digest of the arrays, and a digest
    of every file (`sha256sum -c SHA256SUMS` verifies those too), so that reading notices damage to
    any file. Every process has the whole state: process 0 writes it, and any number of processes
    can read it.
    """

    def __init__(self, directory: Path, *, keep: int = 2, group: ProcessGroup | None = None):
        """Opens a directory, which the first save creates.

        Args:
          directory: on a file system that all processes share.
          keep: number of checkpoints that are kept.
          group: the processes, all of which call every method (None: only this one).
        """
        self._directory, self._group = Path(directory).absolute(), group or ProcessGroup()
        alone = {jax.process_index()} if self._group.count == 1 < jax.process_count() else None
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=not alone,  # Orbax would wait for the other processes
            multiprocessing_options=ocp.options.MultiprocessingOptions(
                primary_host=min(alone or {0}),
                active_processes=alone,
                barrier_sync_key_prefix="alone" if alone else None,
            ),
            async_options=ocp.options.AsyncOptions(post_finalization_callback=self._list_files),
        )
        if alone:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._remove_unfinished()
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: HasStep, info: dict[str, Any]) -> None:
        """Starts to save a state under its step; the caller may donate the state.

        Raises:
          NoSpace: if the disk is full, or was full while the previous state was written.
          NotFinite: if the state is not finite; names the array.
        """
        state = jax.device_get(_without_keys(state))
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        require_finite_arrays(
            state,
            f"The state after step {step} is not saved",
            f"{self._kept()} Lower the learning rate or clip gradients, with a new --workdir.",
        )
        info = info | {"digest": _digest(state), "listed": True}
        self.wait()
        host_memory.return_freed_memory()
        what = f"the checkpoint of step {step}"
        if self._group.index == 0:
            needs = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            # Checked before: Orbax's threads would fail one after the other.
            resource_errors.require_space(
                what, self._directory, needs=needs, still_intact=self._kept()
            )
        args = dict(state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info))
        with self._disk(what):
            self._manager.save(step, args=ocp.args.Composite(**args))

    def restore(self, like: State) -> tuple[State, dict[str, Any]] | None:
        """Returns the newest intact state, as host arrays, with its info; None if there is none.

        Newer checkpoints that are damaged are reported and deleted, so that training can save
        their steps again. `like` is a state of the same structure and shapes, perhaps abstract.

        Raises:
          UserError: if there are checkpoints and all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        steps = self._group.all_gather_object("the list of checkpoints", steps)[0]
        damaged: list[int] = []
        for step in steps:
            state, info, reason = self._read(step, like)
            reasons = self._group.all_gather_object(f"reading checkpoint {step}", reason)
            if reason := next(filter(None, reasons), ""):
                damaged.append(step)
                log.warning("Checkpoint %s is damaged (%s).", self._directory / str(step), reason)
                continue
            for bad in damaged:
                self._manager.delete(bad)
            if damaged:
                log.warning("Resuming from the checkpoint before it, step %d.", step)
            return state, info
        if damaged:
            raise UserError(
                f"All checkpoints in {self._directory} are damaged (steps {damaged}). "
                f"Delete that directory to train this stage again."
            )
        return None

    def read(self, step: int, like: State) -> tuple[State, dict[str, Any]]:
        """Returns the state of one step, as host arrays, with its info; `like` as for `restore`.

        Raises:
          UserError: if the checkpoint is damaged; it is not deleted.
        """
        state, info, reason = self._read(step, like)
        if reason:
            raise UserError(
                f"Checkpoint {self._directory / str(step)} is damaged ({reason}). Use another one."
            )
        return state, info

    def _read(self, step: int, like: State) -> tuple[State, dict, str]:
        """Returns a step's state and info, and the reason if they cannot be read (else '')."""
        folder = self._directory / str(step)
        args = dict(state=ocp.args.StandardRestore(_abstract(like)), info=ocp.args.JsonRestore())
        # A damaged file may make the readers raise anything; an earlier checkpoint may be intact.
        try:
            listed = _check_files(folder)
            read = self._manager.restore(step, args=ocp.args.Composite(**args))
            state, info = jax.device_get(read.state), read.info
            if _digest(state) != info["digest"]:
                raise ValueError("its contents changed after it was written")
            if info.get("listed") and not listed:
                raise FileNotFoundError(f"{FILES} is missing")
        except Exception as error:
            return like, {}, resource_errors.first_line(error)
        return _with_keys(state, like), info, ""

    def _list_files(self) -> None:
        """Writes the digests into a complete checkpoint, before it gets its final name."""
        if self._group.index == 0:
            for folder in self._directory.glob(f"*{_UNFINISHED}*"):
                lines = [f"{_file_digest(folder / name)}  {name}\n" for name in _files(folder)]
                (folder / FILES).write_text("".join(lines))

    def wait(self) -> None:
        """Returns when all saves are on disk; raises `NoSpace` if the disk was full."""
        with self._disk("the newest checkpoint"):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # from any thread of Orbax
            if not resource_errors.is_full_disk(error):
                raise
            self._remove_unfinished()
            raise resource_errors.no_space(
                what, self._directory, still_intact=self._kept()
            ) from error

    def _kept(self) -> str:
        """Returns a sentence on the newest complete checkpoint."""
        steps = [int(p.name) for p in self._directory.glob("*") if p.name.isdigit()]
        if not steps:
            return "No checkpoint was saved yet."
        return f"The checkpoint of step {max(steps)} is intact."

    def _remove_unfinished(self) -> None:
        """Removes checkpoints that a full disk or a kill cut short; Orbax ignores them."""
        if self._group.index == 0:
            for path in self._directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Waits, and closes the directory."""
        self.wait()
        self._manager.close()


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _without_keys(state: Any) -> Any:
    """Returns a state with the data of random keys in place of the keys."""
    return jax.tree.map(lambda a: jax.random.key_data(a) if _is_key(a) else a, state)


def _with_keys(saved: Any, like: Any) -> Any:
    """Returns a state from `_without_keys`, with keys where `like` has them."""
    return jax.tree.map(lambda a, b: jax.random.wrap_key_data(a) if _is_key(b) else a, saved, like)


def _abstract(state: Any) -> Any:
    """Returns shapes and types of a state as it is saved, on one device."""
    like = jax.eval_shape(_without_keys, state)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), like)


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """Returns the names of all files of a checkpoint that have a digest."""
    found = (p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    names = (p.relative_to(folder).as_posix() for p in found)
    return sorted(name for name in names if name not in (FILES, *_LATE))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(folder: Path) -> bool:
    """Returns whether a checkpoint has a list of digests; an error names a file that differs."""
    if not (folder / FILES).exists():
        return False
    lines = (folder / FILES).read_text().splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    for name in sorted({*known, *_files(folder)}):
        if name not in known:
            raise ValueError(f"{FILES} does not list {name}")
        try:
            digest = _file_digest(folder / name)
        except OSError as error:
            raise OSError(f"{name} cannot be read: {error.strerror}") from error
        if digest != known[name]:
            raise ValueError(f"{name} changed after it was written")
    return True


def write_arrays(path: Path, tree: Any) -> None:
    """Writes a tree of arrays to one file, completely or not at all, with a digest."""
    content = serialization.msgpack_serialize(jax.device_get(tree))
    content = hashlib.sha256(content).digest() + content
    atomic.write(path, content, still_intact="Checkpoints are intact.")


def read_arrays(path: Path) -> Any:
    """Reads a file of `write_arrays`; a missing or damaged file is a `UserError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    digest, content = content[:32], content[32:]
    tree = None
    if hashlib.sha256(content).digest() == digest:
        with contextlib.suppress(Exception):  # a file with a forged digest may raise anything
            tree = serialization.msgpack_restore(content)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path} is damaged: its contents changed after it was written. "
            f"Delete it and run the training command again, which resumes from the checkpoints."
        )
    return tree
