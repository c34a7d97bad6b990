"""Runs on a full disk of its own: python tests/storage/small_disk.py SCENARIO.

It runs in a private mount namespace, where it mounts a small tmpfs, and prints what happened as
JSON. A file fills the disk at the moment that a fault names; removing it makes space.
"""

import contextlib
import ctypes
import hashlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path

import jax

from tests.small_run import SMALL

jax.config.update("jax_num_cpu_devices", 1)  # as the commands do
MB = 1 << 20


class Disk:
    """A tmpfs that can be filled."""

    def __init__(self, size):
        self.path = Path(tempfile.mkdtemp())
        libc = ctypes.CDLL(None, use_errno=True)
        options = f"size={size}".encode()
        if libc.mount(b"none", os.fsencode(self.path), b"tmpfs", 0, options):
            raise OSError(ctypes.get_errno(), "cannot mount a tmpfs")
        self._filler = self.path / "filler"

    def fill(self, leave=0):
        """Takes all space but for so many bytes."""
        with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        os.truncate(self._filler, max(0, self._filler.stat().st_size - leave))

    def make_space(self):
        self._filler.unlink(missing_ok=True)


def before(module, name, disk, *, at=lambda *args: True, leave=0):
    """Fills the disk just before a call of a function, and restores the function."""
    original = getattr(module, name)

    def wrapper(*args, **kwargs):
        if at(*args):
            setattr(module, name, original)
            disk.fill(leave)
        return original(*args, **kwargs)

    setattr(module, name, wrapper)


def digest(folder):
    files = ("autoencoder.msgpack", "embeddings.npy", "priors/latent_gan.msgpack")
    return {f: hashlib.sha256((folder / f).read_bytes()).hexdigest() for f in files}


def command(workdir):
    """Runs pmjax.main in this process; returns its status and what it has said."""
    from pmjax import cli, main

    sys.argv = ["main", *SMALL, f"--workdir={workdir}"]
    said, status = io.StringIO(), 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            cli.run(main.main)
        except SystemExit as end:
            status = end.code
    return status, said.getvalue()


def run():
    """Trains and evaluates on a disk that is full at one moment after another."""
    from pmjax.distributed import mesh
    from pmjax.reporting import html, run_log
    from pmjax.storage import checkpoint, metrics_file, resource_errors
    from pmjax.training import stages

    mesh.set_up_cpu = lambda count: None  # JAX runs already at the second command
    disk = Disk(64 * MB)
    workdir = disk.path / "run"

    def at_step(step, foreseen=True):
        def at(self, state, *rest):
            if int(state.step) != step:
                return False
            self.wait()
            if not foreseen:  # then Orbax's own threads meet the full disk
                require = resource_errors.require_space
                resource_errors.require_space = lambda *args, **more: setattr(
                    resource_errors, "require_space", require
                )
            return True

        return at

    def unforeseen():
        before(checkpoint.Checkpoints, "save", disk, at=at_step(40, False), leave=16384)

    faults = {
        "checkpoint": lambda: before(checkpoint.Checkpoints, "save", disk, at=at_step(20)),
        "half a checkpoint": unforeseen,
        "events": lambda: before(
            run_log.RunLog, "scalars", disk, at=lambda self, stage, step, values: step == 35
        ),
        "autoencoder": lambda: before(checkpoint, "write_arrays", disk),
        "embeddings": lambda: before(stages, "write_embeddings", disk),
        "metrics": lambda: before(metrics_file, "record", disk),
        "report": lambda: before(html, "write_report", disk),
    }
    found = {}
    for name, prepare in faults.items():
        prepare()
        status, said = command(workdir)
        folders = sorted(workdir.glob("checkpoints/*"))
        kept = [int(p.name) for p in folders[0].iterdir() if p.name.isdigit()] if folders else []
        torn = [str(p) for p in workdir.rglob("*orbax-checkpoint-tmp*")]
        found[name] = {"status": status, "said": said, "newest": max(kept, default=0), "torn": torn}
        disk.make_space()
    status, said = command(workdir)
    found["end"] = {"status": status, "said": said, "digest": digest(workdir)}
    return found


def cache():
    """Prepares data sets on a disk that is full from the start, or becomes so."""
    from pmjax.datasets import cache, loader

    found = {}
    for name, module, function in (
        ("digits", None, None),
        ("digits", cache, "_describe"),
        ("swiss_roll", cache, "_points"),
    ):
        disk = Disk(32 * MB)
        if module:
            before(module, function, disk)
        else:
            disk.fill(leave=2_500_000)
        try:
            loader.load(name, "train", cache_dir=disk.path)
            said = ""
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
        left = [p.name for p in (disk.path / name).iterdir() if p.is_dir()]
        disk.make_space()
        after = loader.load(name, "train", cache_dir=disk.path)
        found[f"{name} {function}"] = {"said": said, "left": left, "after": after.fingerprint}
    return found


if __name__ == "__main__":
    print(json.dumps(globals()[sys.argv[1]]()))
