"""Reads data sets in MNIST's four IDX files, under their usual names, gzipped or not."""

import functools
import gzip
import math
import re
import zlib
from pathlib import Path

import numpy as np

from pmjax.datasets import archives
from pmjax.datasets.base import Source
from pmjax.datasets.records import DecodedImages
from pmjax.distributed.host_memory import free_memory
from pmjax.errors import UserError


def from_directory(manual_dir: Path, name: str, *, origin: str) -> Source:
    """Returns the data set in a directory or its subfolders, as torchvision and Kaggle have them.

    Subfolders whose name contains 'mnist' and does not begin with that of the data set are not
    searched: MNIST/raw and FashionMNIST/raw have files of the same names.
    """

    def other(folder: str) -> bool:
        letters = re.sub("[^a-z]", "", folder.lower())
        return "mnist" in letters and not letters.startswith(name.replace("_", ""))

    def find(official: str) -> Path:
        stems = official, official.replace("-idx", ".idx")
        names = [stem + end for stem in stems for end in (".gz", "")]
        return archives.find(manual_dir, names, other=other) or manual_dir / names[0]

    files = {
        split: [find(f"{stem}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1")]
        for split, stem in {"train": "train", "test": "t10k"}.items()
    }
    archives.require(sum(files.values(), []), origin=origin)
    return Source(
        version="1.0.0",
        size=28,
        records=functools.partial(_records, files),
        files=tuple(sum(files.values(), [])),
    )


def read(file: Path, *, ndim: int) -> np.ndarray:
    """Reads an IDX file of bytes: a magic number, ndim sizes as big-endian uint32, the values."""
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as content:
            head = np.frombuffer(content.read(4 * (1 + ndim)), np.uint8)
            head = head[: len(head) // 4 * 4].view(">u4").tolist()
            if len(head) <= ndim or head[0] != 0x800 + ndim:  # 8: unsigned bytes
                raise UserError(f"{file} is not an IDX file of bytes in {ndim} dimensions.")
            shape = tuple(head[1:])
            count, free = math.prod(shape), free_memory()
            if free is not None and count > free:
                raise UserError(
                    f"{file} has shape {shape} by its header, which needs {count / 1e9:.3g} GB of "
                    f"memory; {free / 1e9:.1f} GB are free. The file is damaged, or this machine "
                    "is too small."
                )
            # At most one byte more: a small file can decompress to any length.
            values = np.frombuffer(content.read(count + 1), np.uint8)
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{file} cannot be read: {e}. Get it again.") from e
    if len(values) != count or not count:
        found = f"{len(values)} values" if len(values) <= count else "more values"
        raise UserError(
            f"{file} contains {found} where its header says {shape}: it is truncated or damaged. "
            "Get it again."
        )
    return values.reshape(shape)


def _records(files: dict[str, list[Path]]) -> dict[str, DecodedImages]:
    splits = {}
    for split, (image_file, label_file) in files.items():
        images, labels = read(image_file, ndim=3), read(label_file, ndim=1)
        if len(images) != len(labels):
            raise UserError(
                f"{image_file} has {len(images)} images but {label_file} has {len(labels)} labels."
            )
        splits[split] = DecodedImages(images, labels)
    return splits
