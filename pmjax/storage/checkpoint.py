"""Checkpoints of a training state: asynchronous, the last few kept, checked when read."""

import contextlib
import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from pmjax.distributed import host_memory
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError
from pmjax.finite import require_finite_arrays
from pmjax.storage import resource_errors
from pmjax.training.step import TrainState

FILES = "SHA256SUMS"  # in a checkpoint: the digest of each file
_UNFINISHED = ".orbax-checkpoint-tmp"  # in the name of a checkpoint that is being written
# What Orbax writes after all else: times and the names of its classes, nothing of the state.
_LATE = ("commit_success.txt", "_CHECKPOINT_METADATA")


class Checkpoints:
    """The checkpoints of one stage, which one process or all of them save and restore.

    Each holds the state, a dictionary with what it belongs to and a digest of its arrays, and the
    digest of every file (`sha256sum -c SHA256SUMS` checks them too), so that damage to any of them
    is noticed when it is read. As each process holds the whole state, the first writes it, and any
    number can read it.
    """

    def __init__(self, directory: Path, *, keep: int = 2, hosts: ProcessGroup | None = None):
        """Opens a directory, which is created at the first save.

        Args:
          directory: seen by all processes.
          keep: how many to keep.
          hosts: the processes, all of which call every method (None: this one alone).
        """
        self._directory, self._hosts = Path(directory).absolute(), hosts or ProcessGroup()
        alone = None
        if self._hosts.count == 1 < jax.process_count():
            alone = {jax.process_index()}
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            enable_async_checkpointing=True,
            create=not alone,  # Orbax would ask the others
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

    def save(self, state: TrainState, info: dict[str, Any]) -> None:
        """Starts to save a state under its step; the caller may go on and donate it.

        Raises:
          NoSpace: if the disk is full, or was while the state before was being written.
          NotFinite: if the state is not finite; names the array.
        """
        state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        require_finite_arrays(
            {"params": state.params, "stats": state.stats, "ema": state.ema, "opt": state.opt},
            f"The state after step {step} is not saved",
            f"{self._kept()} Lower the learning rate or clip gradients, with a new --workdir.",
        )
        info = info | {"digest": _digest(state), "listed": True}
        self.wait()
        host_memory.return_freed_memory()  # its holes would add up
        what = f"the checkpoint of step {step}"
        if self._hosts.index == 0:
            needs = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            # Before it is written: Orbax's threads would fail one by one.
            resource_errors.require_space(what, self._directory, needs=needs, kept=self._kept())
        with self._disk(what):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), info=ocp.args.JsonSave(info)
                ),
            )

    def restore(
        self, like: TrainState, *, say: Callable[[str], None]
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Returns the newest state that can be read, as host arrays, with its info.

        Args:
          like: a state of the same structure and shapes, for instance abstract.
          say: is told of damaged checkpoints that are passed over; they are deleted, so that
            training can save those steps again.

        Returns:
          None if there is no checkpoint.

        Raises:
          UserError: if there are checkpoints and all are damaged.
        """
        steps = sorted(self._manager.all_steps(), reverse=True)
        steps = self._hosts.all_gather_object("the list of checkpoints", steps)[0]
        like, damaged = _abstract(like), []
        for step in steps:
            state, info, reason = self._read(step, like)
            reasons = self._hosts.all_gather_object(f"reading checkpoint {step}", reason)
            if reason := next(filter(None, reasons), ""):
                damaged.append(step)
                say(f"Checkpoint {self._directory / str(step)} is damaged ({reason}).")
                continue
            for bad in damaged:
                self._manager.delete(bad)
            if damaged:
                say(f"Going on from the checkpoint before it, step {step}.")
            key = jax.random.wrap_key_data(state.key)
            return state.replace(key=key), info
        if damaged:
            raise UserError(
                f"All checkpoints in {self._directory} are damaged (steps {damaged}). "
                f"Delete that directory to train this stage again."
            )
        return None

    def read(self, step: int, like: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """Returns the state of one step, as host arrays, with its info; `like` as for `restore`.

        Raises:
          UserError: if it is damaged; it is left as it is.
        """
        state, info, reason = self._read(step, _abstract(like))
        if reason:
            raise UserError(
                f"Checkpoint {self._directory / str(step)} is damaged ({reason}). Take another one."
            )
        return state.replace(key=jax.random.wrap_key_data(state.key)), info

    def _read(self, step: int, like: TrainState) -> tuple[TrainState | None, dict, str]:
        """Returns a step's state and info, and what is wrong with them ('': nothing)."""
        folder = self._directory / str(step)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), info=ocp.args.JsonRestore())
        # Whatever a damaged file makes the readers below raise, the one before it may be good.
        try:
            listed = _check_files(folder)
            read = self._manager.restore(step, args=args)
            state, info = jax.device_get(read.state), read.info
            if _digest(state) != info["digest"]:
                raise ValueError("its contents have changed since it was written")
            if info.get("listed") and not listed:
                raise FileNotFoundError(f"{FILES} is missing")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return None, {}, reason[:200]
        return state, info, ""

    def _list_files(self) -> None:
        """Writes the digests into a checkpoint that is whole, before it gets its final name."""
        if self._hosts.index == 0:
            for folder in self._directory.glob(f"*{_UNFINISHED}*"):
                lines = [f"{_file_digest(folder / name)}  {name}\n" for name in _files(folder)]
                (folder / FILES).write_text("".join(lines))

    def wait(self) -> None:
        """Returns when what was saved is on disk; raises `NoSpace` if that was full."""
        with self._disk("the newest checkpoint"):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _disk(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any thread of Orbax's
            if not resource_errors.is_full_disk(error):
                raise
            self._remove_unfinished()
            raise resource_errors.no_space(what, self._directory, kept=self._kept()) from error

    def _kept(self) -> str:
        """Returns a sentence on the newest checkpoint that is whole."""
        steps = [int(p.name) for p in self._directory.glob("*") if p.name.isdigit()]
        return (
            f"The checkpoint of step {max(steps)} is good."
            if steps
            else "No checkpoint was saved yet."
        )

    def _remove_unfinished(self) -> None:
        """Removes what a full disk or a kill has left; Orbax never reads it, but it takes room."""
        if self._hosts.index == 0:
            for path in self._directory.glob(f"*{_UNFINISHED}*"):
                shutil.rmtree(path, ignore_errors=True)

    def close(self) -> None:
        """Waits, and closes the directory."""
        self.wait()
        self._manager.close()


def _abstract(state: TrainState) -> TrainState:
    """Returns shapes and types of a state as it is saved, on one device."""
    like = jax.eval_shape(lambda s: s.replace(key=jax.random.key_data(s.key)), state)
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), like)


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _files(folder: Path) -> list[str]:
    """Returns the names of all files that a checkpoint's list has."""
    found = (p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink())
    names = (p.relative_to(folder).as_posix() for p in found)
    return sorted(name for name in names if name not in (FILES, *_LATE))


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_files(folder: Path) -> bool:
    """Raises an error that names a file which is not as listed; tells whether there is a list."""
    if not (folder / FILES).exists():
        return False
    known = {}
    for line in (folder / FILES).read_text().splitlines():
        digest, _, name = line.partition("  ")
        known[name] = digest
    for name in sorted({*known, *_files(folder)}):
        if name not in known:
            raise ValueError(f"{FILES} does not list {name}")
        try:
            digest = _file_digest(folder / name)
        except OSError as error:
            raise OSError(f"{name} cannot be read: {error.strerror}") from error
        if digest != known[name]:
            raise ValueError(f"{name} has changed since it was written")
    return True


def write_arrays(path: Path, tree: Any) -> None:
    """Writes a tree of arrays to one file, at once or not at all, with a digest of its bytes."""
    content = serialization.msgpack_serialize(jax.device_get(tree))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    with resource_errors.disk(path.name, path.parent, kept="Checkpoints are kept."):
        part.write_bytes(hashlib.sha256(content).digest() + content)
        part.replace(path)


def read_arrays(path: Path) -> Any:
    """Reads what `write_arrays` wrote; a missing or damaged file is a `UserError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    digest, content = content[:32], content[32:]
    tree = None
    if hashlib.sha256(content).digest() == digest:
        with contextlib.suppress(Exception):  # a file made to fit the digest may raise anything
            tree = serialization.msgpack_restore(content)
    if not isinstance(tree, dict):
        raise UserError(
            f"{path} is damaged: its contents have changed since it was written. "
            f"Delete it and run the training command again; it goes on from the "
            f"checkpoints."
        )
    return tree
