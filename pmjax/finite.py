"""Refuses numbers that are NaN or infinite, and says which they are."""

from typing import Any

import jax
import numpy as np

from pmjax.errors import UserError

_ROWS = 1 << 16  # that are looked at together


class NotFinite(UserError):
    """Data, a step or a state are not finite."""


def require_finite(data: np.ndarray, what: str, advice: str) -> None:
    """Raises `NotFinite` for the first example of data [N, …] that is not finite."""
    if data.dtype.kind != "f":
        return
    for start in range(0, len(data), _ROWS):
        part = np.asarray(data[start : start + _ROWS])
        part = part.reshape(len(part), -1)
        good = np.isfinite(part)
        if not good.all():
            row = int(np.argmin(good.all(1)))
            value = part[row, np.argmin(good[row])]
            raise NotFinite(f"{what} {start + row} holds {value}. {advice}")


def require_finite_arrays(tree: Any, what: str, advice: str) -> None:
    """Raises `NotFinite` for the first array of a tree that is not finite."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        leaf = np.asarray(leaf)
        if jax.dtypes.issubdtype(leaf.dtype, np.inexact) and not np.isfinite(leaf).all():
            name = jax.tree_util.keystr(path, simple=True, separator=".")
            raise NotFinite(f"{what}: {name} is not finite. {advice}")
