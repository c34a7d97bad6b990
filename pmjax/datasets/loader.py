"""Loads a split of a data set by name: what training and evaluation call."""

import inspect
from pathlib import Path

from pmjax import paths, plugins
from pmjax.datasets import cache
from pmjax.datasets.base import SPLITS, Dataset, Source
from pmjax.errors import UserError, unknown

ALL_SPLITS = (*SPLITS, "validation")


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
    """Returns a split of a data set from the cache, preparing the data set on the first call.

    Args:
        name: a file of this folder, such as 'digits'.
        split: 'train' or 'test', or 'validation' where the data set has it.
        path: the directory of 'image_folder'.
        manual_dir: a directory with the official files of a stock data set.
        size: side of the images in pixels, instead of the default of the data set.
        cache_dir: the cache, by default $PMJAX_CACHE or ~/.cache/pmjax.
        skip_broken: skip unreadable files and list them in `Dataset.skipped`.
        verify: whether official archives must have their registered sizes and checksums.
        seed: of the split, and of the points of a synthetic data set.

    Raises:
        UserError: for an unknown name, for an unsupported or missing argument, and for missing or
            unreadable files.
    """
    if split not in ALL_SPLITS:
        raise unknown("split", split, ALL_SPLITS)
    source = _source(name, path=path, manual_dir=manual_dir, verify=verify, seed=int(seed))
    if split not in source.splits:
        raise UserError(
            f"Data set '{name}' has no split '{split}', only: {', '.join(source.splits)}."
        )
    if source.points and size is not None:
        raise UserError(
            f"Data set '{name}' consists of points: leave size (--config.data.size) unset."
        )
    size = size or source.size
    if not source.points and (size is None or size < 1):
        raise UserError(
            f"Data set '{name}' needs the side of its images in pixels, such as size=64 "
            "(--config.data.size=64)."
        )
    return cache.load(
        name, split, source=source, size=size, cache_dir=cache_dir, skip_broken=skip_broken
    )


def _source(
    name: str,
    *,
    path: str | Path | None,
    manual_dir: str | Path | None,
    verify: bool = True,
    seed: int,
) -> Source:
    """Returns the `Source` of a data set, called with the arguments that it declares."""
    source = plugins.load("datasets", name).source
    declared = inspect.signature(source).parameters
    files = {
        argument: value if value is None else paths.local(value).absolute()
        for argument, value in {"path": path, "manual_dir": manual_dir}.items()
    }
    for argument, value in {**files, "verify": None if verify else False}.items():
        if value is not None and argument not in declared:
            raise UserError(
                f"Data set '{name}' has no argument {argument}: leave --config.data.{argument} "
                "unset."
            )
    given = {**files, "verify": verify, "seed": seed}
    return source(**{k: v for k, v in given.items() if k in declared})
