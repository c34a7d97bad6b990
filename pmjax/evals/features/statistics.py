"""Means and covariances of features in files: published ones, and a cache."""

import contextlib
import hashlib
import json
import logging
import math
import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from pmjax import paths
from pmjax.errors import UserError
from pmjax.evals.registry import metric_for_dimension
from pmjax.storage.lock import lock

log = logging.getLogger(__name__)

FORMAT = 2  # of the cache; raise it when the numbers of an extractor change
Moments = tuple[np.ndarray, np.ndarray, int]
# What reading an .npz raises; RuntimeError: it is encrypted or of an unusual compression.
UNREADABLE = (OSError, ValueError, EOFError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error)


def cache_directory(name: str) -> Path:
    """Returns the folder for files of one kind, in $PMJAX_CACHE or ~/.cache/pmjax."""
    return paths.cache() / name


def shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Returns the shape of each array in an .npz from its header; {} for any other file."""
    found = {}
    with contextlib.suppress(*UNREADABLE), zipfile.ZipFile(path) as file:
        for name in file.namelist():
            if name.endswith(".npy"):
                with file.open(name) as content:
                    first = npy.read_magic(content) == (1, 0)
                    head = npy.read_array_header_1_0 if first else npy.read_array_header_2_0
                    found[name.removesuffix(".npy")] = head(content)[0]
    return found


def dimensions(path: Path) -> int | None:
    """Returns the number of features of statistics in an .npz; None for any other file."""
    found = shapes(path)
    return math.prod(found["mu"]) if {"mu", "sigma"} <= set(found) else None


def read(path: Path, *, dim: int, about: dict[str, str] | None = None) -> Moments:
    """Returns mean [D], covariance [D, D] and number (0 if unknown) of an .npz file.

    Args:
        path: with arrays 'mu' and 'sigma', as pytorch-fid, TTUR, EDM and guided-diffusion publish
            them, and 'num' and 'about' if pmjax wrote it; any others are ignored.
        dim: D.
        about: extractor and its identity, which a file that pmjax wrote must agree with; others
            do not name their features.

    Raises:
        UserError: if it cannot be read, or has another size or other features.
    """
    found: dict[str, str] = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            mean, cov = _real(file["mu"]).ravel(), _real(file["sigma"])
            count = _count(file["num"]) if "num" in file else 0
            if "about" in file:
                with contextlib.suppress(ValueError, TypeError):  # another tool's
                    found = dict(json.loads(str(file["about"])))
    except UNREADABLE as error:
        raise UserError(
            f"{path} cannot be read as statistics of features: arrays 'mu' [D] and 'sigma' [D, D] "
            f"in an .npz ({error})."
        ) from error
    if mean.shape != (dim,) or cov.shape != (dim, dim):
        metric = metric_for_dimension(mean.size)
        raise UserError(
            f"{path} holds statistics of sizes {list(mean.shape)} and {list(cov.shape)}, and these "
            f"features have {dim} dimensions: it was made with another extractor."
            + (f" Try --evals={metric}." if metric and mean.size != dim else "")
        )
    if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
        raise UserError(f"{path} holds NaN or infinite values.")
    if np.abs(cov - cov.T).max() > 1e-6 * np.abs(cov).max() or cov.diagonal().min() < 0:
        raise UserError(
            f"{path}: 'sigma' is not a covariance: not symmetric, or of negative variance."
        )
    for name, value in (about or {}).items():
        if found and found.get(name) != value:
            raise UserError(
                f"{path} holds statistics with {name} {found.get(name)}, and here it is {value}."
            )
    return mean, cov, count


def _real(values: np.ndarray) -> np.ndarray:
    """Returns numbers as float64, without the imaginary rounding errors of a matrix root."""
    if values.dtype.kind not in "biufc":
        raise ValueError(f"an array of {values.dtype}")
    if np.abs(values.imag).max(initial=0) > 1e-6 * np.abs(values).max(initial=0):
        raise ValueError("an array of complex numbers")
    return values.real.astype(np.float64)


def _count(num: np.ndarray) -> int:
    """Returns a number of images, 0 for none."""
    value = num.item() if num.size == 1 and num.dtype.kind in "iuf" else None
    if num.size and (value is None or value < 0 or value % 1):
        raise ValueError(f"'num' is {num.tolist()}, not a number of images")
    return int(value or 0)


def write(path: Path, moments: Moments, about: dict[str, str]) -> None:
    """Writes a file for `read`, atomically."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    with part.open("wb") as file:
        np.savez(file, mu=moments[0], sigma=moments[1], num=moments[2], about=json.dumps(about))
    part.replace(path)


def cached(
    about: dict[str, str], fingerprint: str, make: Callable[[], Moments], dim: int
) -> Moments:
    """Returns the statistics of a whole data set, computed once for its content.

    Without a fingerprint of the data, they are not stored. `about` is the extractor's identity.
    """
    if not fingerprint:
        return make()
    key = json.dumps([FORMAT, sorted(about.items()), fingerprint])
    with contextlib.ExitStack() as stack:
        try:
            name = f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
            path = cache_directory("statistics") / name
            stack.enter_context(lock(path, "statistics of features"))
        except UserError as error:
            log.warning("Statistics of features are not cached: %s", error)
            return make()
        if path.is_file():
            with contextlib.suppress(UserError):  # a damaged file is replaced
                return read(path, dim=dim, about=about)
        moments = make()
        write(path, moments, about | {"data": fingerprint})
    return moments
