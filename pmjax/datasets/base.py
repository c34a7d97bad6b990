"""Data sets: one small file each, one pipeline for all of them.

Encoded images (or points) out of a TFDS builder or a user's files are decoded, cropped and resized
once, by all cores where that takes long, and kept as memory-mapped arrays. Training and evaluation
see only the `Dataset` that `load` returns.

A data set called NAME is the file `pmjax/datasets/NAME.py` (files that start with an underscore
are parts of the pipeline), with one function that returns a `Source` and does no heavy work:

    def source(*, path, manual_dir, verify, seed) -> Source  # takes only what it uses of these

A set that TFDS already has is two lines:

    def source():
        return Source(stock="cifar10", version="3.0.2", size=32)

Any other set gives `records`, called only when the arrays are not in the cache: it returns the
splits 'train' and 'test' (or what `splits` names), with records of one of two forms,

    {"image": bytes, "label": int, "file": bytes}       # an encoded image of any size and format
    {"point": float32 [D], "label": float}

where 'label' (an int for a class, a float for a coordinate) and 'file' (what to call it when it is
broken) may be missing. `png` encodes an array.
A split is either an iterable, which a TFDS builder stores first, or, better for large sets, a
sequence that can be pickled, from which each process that decodes takes what it needs:
`pmjax/datasets/records.py` has some, whose images may be uint8 arrays as well.
Everything that decides the content has to be in `version`, `files` or `identity`.
"""

import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from pmjax import plugins
from pmjax.datasets.batches import batch_indices, fits, stream, to_float, to_uint8
from pmjax.datasets.images import png
from pmjax.errors import UserError, unknown

__all__ = [
    "Dataset", "Source", "batch_indices", "fits", "load", "names", "png", "stream", "to_float",
    "to_uint8",
]  # fmt: skip

SPLITS = ("train", "test")  # that every set has
EXTRA_SPLITS = ("validation",)  # that a set may have


@dataclasses.dataclass(frozen=True, kw_only=True)
class Source:
    """Where a data set comes from, and everything that decides its content."""

    version: str  # of the content: raised when the same inputs give other data
    size: int | None = None  # side of the images in pixels by default; None: the user has to say
    points: bool = False  # points instead of images
    stock: str | None = None  # name of the set in TFDS, or
    records: Callable[[], Mapping[str, Iterable[dict]]] | None = None  # split -> records
    files: tuple[Path, ...] = ()  # read by `records`; a changed size or time remakes the cache
    identity: tuple = ()  # what else decides the content, such as a seed
    splits: tuple[str, ...] = SPLITS


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a data set, as memory-mapped arrays that cannot be written to."""

    data: np.ndarray  # uint8 [N, H, W, C], C = 1 or 3, or float32 [N, D] points
    labels: np.ndarray | None  # int64 [N] classes or float32 [N] coordinates
    fingerprint: str  # sha256 over data and labels: equal exactly if the content is
    skipped: tuple[str, ...] = ()  # broken files that were left out


def names() -> list[str]:
    """Returns the names of all data sets."""
    return plugins.names("datasets")


def load(
    name: str,
    split: str,
    *,
    path: str | Path | None = None,
    manual_dir: str | Path | None = None,
    size: int | None = None,
    cache_dir: str | Path | None = None,
    skip_broken: bool = False,
    verify: bool = True,
    seed: int = 0,
) -> Dataset:
    """Returns a split of a data set, made on the first call and then kept.

    Args:
        name: a file of this package, such as 'digits'.
        split: 'train' or 'test', or 'validation' for sets that have it.
        path: the directory of 'image_folder'.
        manual_dir: a directory with the official files of a stock set.
        size: side of the images in pixels, instead of the set's own.
        cache_dir: where the arrays are kept, by default $PMJAX_CACHE or ~/.cache/pmjax.
        skip_broken: leave files out that cannot be read, and list them in `Dataset.skipped`.
        verify: whether official archives must have their registered sizes and checksums.
        seed: of the split, and of the points of a synthetic set.

    Raises:
        UserError: for an unknown name, for an argument that the set does not take or needs, and
            for files that are missing or broken.
    """
    from pmjax.datasets import cache  # imports this module

    if split not in SPLITS + EXTRA_SPLITS:
        raise unknown("split", split, SPLITS + EXTRA_SPLITS)
    source = _source(name, path=path, manual_dir=manual_dir, verify=bool(verify), seed=int(seed))
    if split not in source.splits:
        raise UserError(f"Data set '{name}' has no split '{split}', only: "
                        f"{', '.join(source.splits)}.")  # fmt: skip
    if source.points and size is not None:
        raise UserError(f"Data set '{name}' holds points: leave size (--config.data.size) unset.")
    size = size or source.size
    if not source.points and (size is None or size < 1):
        raise UserError(
            f"Data set '{name}' needs the side of its images in pixels, such as size=64 "
            "(--config.data.size=64)."
        )
    return cache.load(
        name, split, source=source, size=size, cache_dir=cache_dir, skip_broken=skip_broken
    )


def _source(name: str, *, path, manual_dir, verify: bool = True, seed: int) -> Source:
    """Finds a data set by its file name and gives it the arguments that it takes."""
    source = plugins.load("datasets", name).source
    taken = inspect.signature(source).parameters
    given = {"path": path, "manual_dir": manual_dir}
    for argument, value in {**given, "verify": None if verify else verify}.items():
        if value is not None and argument not in taken:
            raise UserError(
                f"Data set '{name}' takes no {argument}: leave --config.data.{argument} unset."
            )
    given = {k: v if v is None else Path(v).expanduser().absolute() for k, v in given.items()}
    given |= {"verify": verify, "seed": seed}
    return source(**{k: v for k, v in given.items() if k in taken})
