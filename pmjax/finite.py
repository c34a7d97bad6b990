"""Rejects data and states that hold NaN or infinite values, and names the first one."""

from typing import Any

import jax
import numpy as np

from pmjax.errors import UserError

_CHUNK = 1 << 16  # examples that are checked at once, which bounds memory


class NotFinite(UserError):
    """Data, a step or a state is not finite."""


def require_finite(data: np.ndarray, what: str, advice: str) -> None:
    """Raises `NotFinite` for the first example of data [N, …] that is not finite."""
    if data.dtype.kind != "f":
        return
    for start in range(0, len(data), _CHUNK):
        chunk = np.asarray(data[start : start + _CHUNK])
        chunk = chunk.reshape(len(chunk), -1)
        finite = np.isfinite(chunk)
        if not finite.all():
            row = int(np.argmin(finite.all(1)))
            value = chunk[row, np.argmin(finite[row])]
            raise NotFinite(f"{what} {start + row} holds {value}. {advice}")


def require_finite_arrays(tree: Any, what: str, advice: str) -> None:
    """Raises `NotFinite` for the first array of a tree that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.asarray(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise NotFinite(f"{what}: {name} is not finite. {advice}")
