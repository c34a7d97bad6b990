"""CIFAR-10 (Krizhevsky 2009): 50000 + 10000 photographs, from TFDS or the official archive.

`manual_dir` or its subfolders contain cifar-10-python.tar.gz or the unpacked directory
cifar-10-batches-py.
"""

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np

from pmjax.datasets import archives
from pmjax.datasets.base import Source
from pmjax.datasets.records import DecodedImages
from pmjax.errors import UserError

ARCHIVE, FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
ARCHIVES = (ARCHIVE, f"{FOLDER}.tar.gz", ARCHIVE.removesuffix(".gz"))  # also Keras', unzipped
SIZE = 170498071
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
ORIGIN = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
BATCHES = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
EACH = 10000  # images in a batch


def source(*, manual_dir: Path | None, verify: bool) -> Source:
    """RGB 32 x 32 in 10 classes."""
    if manual_dir is None:
        return Source(stock="cifar10", version="3.0.2", size=32)
    names = sum(BATCHES.values(), [])
    archive = archives.find(manual_dir, ARCHIVES)
    batch = None if archive else archives.find(manual_dir, names)
    unpacked = batch is not None
    files = [batch.with_name(n) for n in names] if batch else [archive or manual_dir / ARCHIVE]
    return archives.declare(
        _records, tuple(files), verify=verify, unpacked=unpacked, origin=ORIGIN, folder=FOLDER,
        size=32,
    )  # fmt: skip


def _records(files: tuple[Path, ...], *, verify: bool) -> dict[str, DecodedImages]:
    if files[0].name in ARCHIVES:
        if verify:
            archives.check(files[0], size=SIZE, sha256=SHA256, origin=ORIGIN)
        batches = _unpack(files[0])
    else:
        batches = {file.name: (str(file), file.read_bytes()) for file in files}
    splits = {}
    for split, names in BATCHES.items():
        parts = [read_batch(content, place, each=EACH if verify else None)
                 for place, content in (batches[name] for name in names)]  # fmt: skip
        splits[split] = DecodedImages(*map(np.concatenate, zip(*parts, strict=True)))
    return splits


def _unpack(archive: Path) -> dict[str, tuple[str, bytes]]:
    """Returns the path (for messages) and content of the batches in an archive, read in memory."""
    wanted = {f"{FOLDER}/{name}": name for name in sum(BATCHES.values(), [])}
    found = {}
    try:
        # Reads to the end, where gzip verifies its checksum; tarfile's own "r|gz" does not.
        unzip = open if archive.suffix == ".tar" else gzip.open
        with unzip(archive, "rb") as content, tarfile.open(fileobj=content, mode="r|") as tar:
            for member in tar:
                file = tar.extractfile(member) if member.isfile() else None
                if file and (name := wanted.get(member.name)):
                    found[name] = (f"{archive}: {name}", file.read())
            while content.read(1 << 20):
                continue
    except Exception as e:  # damaged archives raise nearly anything
        raise archives.unreadable(archive, e, "truncated or damaged", ORIGIN) from e
    if lacking := sorted(set(wanted.values()) - set(found)):
        raise UserError(f"{archive} lacks {FOLDER}/{lacking[0]}. Get it again from {ORIGIN}.")
    return found


def read_batch(
    content: bytes, place: str, *, each: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Reads a batch: a pickled dictionary with b'data' uint8 [N, 3072] and b'labels'.

    Args:
        content: of the file.
        place: its name in messages.
        each: N, if known.

    Returns:
        Images uint8 [N, 32, 32, 3] and labels int64 [N].
    """
    try:
        batch = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        _, shape, dtype, fortran, values = batch[b"data"].state
        if dtype.args[0] not in (b"u1", "u1") or fortran:
            raise ValueError(f"an array of type {dtype.args[0]!r}")
        data = np.frombuffer(values, np.uint8).reshape(shape)
        labels = np.array(batch[b"labels"], np.int64)
        if data.shape != (each or len(labels), 3072) or labels.shape != data.shape[:1]:
            raise ValueError(f"values of shape {data.shape} with {len(labels)} labels")
        if not len(labels) or labels.min() < 0 or labels.max() > 9:
            raise ValueError("labels other than 0 to 9")
    except Exception as e:  # damaged pickles raise nearly anything
        raise UserError(
            f"{place} is not a batch of CIFAR-10 ({e or type(e).__name__}). Get it again from "
            f"{ORIGIN}."
        ) from e
    return data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels


class _Stub:
    """Stand-in for a NumPy array or dtype in a pickle: its arguments and state, no NumPy code."""

    state: tuple = ()

    def __init__(self, *args: Any):
        self.args = args

    def __setstate__(self, state: tuple) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Unpickles plain values, arrays and dtypes; the only callable is the class above."""

    def find_class(self, module: str, name: str) -> type:
        """Returns the stand-in for a global name."""
        if f"{module}.{name}" in (
            "numpy.core.multiarray._reconstruct",
            "numpy.ndarray",
            "numpy.dtype",
        ):
            return _Stub
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")
