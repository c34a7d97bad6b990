"""Sets in the four IDX files of MNIST, under their official names, gzipped or not."""

import functools
import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from pmjax.datasets import Source
from pmjax.datasets._records import Arrays
from pmjax.errors import UserError

STEMS = {"train": "train", "test": "t10k"}
IMAGES, LABELS = "-images-idx3-ubyte", "-labels-idx1-ubyte"


def source(manual_dir: Path) -> Source:
    """Returns the set that lies in a directory."""
    files = {
        split: (_find(manual_dir, stem + IMAGES), _find(manual_dir, stem + LABELS))
        for split, stem in STEMS.items()
    }
    return Source(
        version="1.0.0",
        size=28,
        records=functools.partial(_records, files),
        files=tuple(file for pair in files.values() for file in pair),
    )


def read(file: Path, *, ndim: int) -> np.ndarray:
    """Reads an IDX file of bytes: a magic number, ndim sizes as big-endian uint32, the values."""
    try:
        data = (gzip.decompress if file.suffix == ".gz" else bytes)(file.read_bytes())
    except (OSError, EOFError, zlib.error) as e:
        raise UserError(f"{file} cannot be read: {e}. Fetch it again.") from e
    head = np.frombuffer(data[: 4 * (1 + ndim)], ">u4") if len(data) >= 4 * (1 + ndim) else [0]
    if head[0] != 0x800 + ndim:  # 8: unsigned bytes
        raise UserError(f"{file} is not an IDX file of bytes in {ndim} dimensions.")
    shape = tuple(int(n) for n in head[1:])
    values = np.frombuffer(data, np.uint8, offset=4 * (1 + ndim))
    if len(values) != math.prod(shape) or not len(values):
        raise UserError(
            f"{file} holds {len(values)} values where its header says {shape}: it is truncated or "
            "damaged. Fetch it again."
        )
    return values.reshape(shape)


def _find(manual_dir: Path, name: str) -> Path:
    for file in (manual_dir / f"{name}.gz", manual_dir / name):
        if file.exists():
            return file
    raise UserError(f"{manual_dir} (--config.data.manual_dir) holds neither {name}.gz nor {name}.")


def _records(files: dict[str, tuple[Path, Path]]) -> dict[str, Arrays]:
    splits = {}
    for split, (image_file, label_file) in files.items():
        images, labels = read(image_file, ndim=3), read(label_file, ndim=1)
        if len(images) != len(labels):
            raise UserError(f"{image_file} holds {len(images)} images, {label_file} {len(labels)}.")
        splits[split] = Arrays(images, labels)
    return splits
