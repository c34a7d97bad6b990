"""What a data set is: `Source` describes one, `Dataset` is one split of it in memory."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

SPLITS = ("train", "test")  # every data set has these


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set comes from, and everything that determines its content.

    Either `stock` names a data set of TFDS, or `records` returns the records of each split:

        {"image": bytes, "label": int, "file": bytes}  # an encoded image of any size and format
        {"image": uint8 [H, W] or [H, W, 3], …}
        {"point": float32 [D], "label": float}

    'label' (int: a class, float: a coordinate) and 'file' (its name in error messages) are
    optional. A split of a large data set is a sequence that pickles small (see `records.py`): each
    decoding process reads its own part. Any other iterable is held in memory meanwhile.
    """

    version: str  # of the content: raise it when the same inputs give different data
    size: int | None = None  # default side of the images in pixels; None: the user must set it
    points: bool = False  # points instead of images
    stock: str | None = None
    records: Callable[[], Mapping[str, Iterable[dict]]] | None = None  # called on a cache miss
    files: tuple[Path, ...] = ()  # read by `records`; a new size or time rebuilds the cache
    identity: tuple = ()  # whatever else determines the content, such as a seed
    splits: tuple[str, ...] = SPLITS


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, as read-only memory-mapped arrays."""

    data: np.ndarray  # uint8 [N, H, W, C], C = 1 or 3, or float32 [N, D] points
    labels: np.ndarray | None  # int64 [N] classes or float32 [N] coordinates
    fingerprint: str  # sha256 of data and labels
    skipped: tuple[str, ...] = ()  # unreadable files that were skipped
