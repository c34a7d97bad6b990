"""Checkpoints of a training state: asynchronous, the last few kept, checked when read."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax import serialization

from pmjax.errors import UserError
from pmjax.hosts import Hosts
from pmjax.step import TrainState


class Checkpoints:
    """The checkpoints of one stage, which one process or all of them save and restore.

    Each holds the state, and a dictionary with what it belongs to and a digest of its arrays, so
    that damage to a file is noticed when it is read. As each process holds the whole state, the
    first writes it, and any number can read it.
    """

    def __init__(self, directory: Path, *, keep: int = 2, hosts: Hosts | None = None):
        """Opens a directory, which is created at the first save.

        Args:
          directory: seen by all processes.
          keep: how many to keep.
          hosts: the processes, all of which call every method (None: this one alone).
        """
        self._directory, self._hosts = Path(directory).absolute(), hosts or Hosts()
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
        )
        if alone:
            self._directory.mkdir(parents=True, exist_ok=True)
        self._manager = ocp.CheckpointManager(self._directory, options=options)

    def save(self, state: TrainState, info: dict[str, Any]) -> None:
        """Starts to save a state under its step; the caller may go on and donate it."""
        state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        info = info | {"digest": _digest(state)}
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
        steps = self._hosts.exchange("the list of checkpoints", steps)[0]
        like = jax.eval_shape(lambda s: s.replace(key=jax.random.key_data(s.key)), like)
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=device), like)
        damaged = []
        for step in steps:
            state, info, reason = self._read(step, like)
            reasons = self._hosts.exchange(f"reading checkpoint {step}", reason)
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

    def _read(self, step: int, like: TrainState) -> tuple[TrainState | None, dict, str]:
        """Returns a step's state and info, and what is wrong with them ('': nothing)."""
        args = ocp.args.Composite(state=ocp.args.StandardRestore(like), info=ocp.args.JsonRestore())
        # Whatever a damaged file makes the readers below raise, the one before it may be good.
        try:
            read = self._manager.restore(step, args=args)
            state, info = jax.device_get(read.state), read.info
            if _digest(state) != info["digest"]:
                raise ValueError("its contents have changed since it was written")
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            return None, {}, reason[:200]
        return state, info, ""

    def wait(self) -> None:
        """Returns when what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and closes the directory."""
        self.wait()
        self._manager.close()


def _digest(tree: Any) -> str:
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def write_arrays(path: Path, tree: Any) -> None:
    """Writes a tree of arrays to one file, at once or not at all, with a digest of its bytes."""
    content = serialization.msgpack_serialize(jax.device_get(tree))
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(hashlib.sha256(content).digest() + content)
    part.replace(path)


def read_arrays(path: Path) -> Any:
    """Reads what `write_arrays` wrote; a missing or damaged file is a `UserError`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}).") from error
    digest, content = content[:32], content[32:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(
            f"{path} is damaged: its contents have changed since it was written. "
            f"Delete it and run the training command again; it goes on from the "
            f"checkpoints."
        )
    return serialization.msgpack_restore(content)
