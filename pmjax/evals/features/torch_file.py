"""Reads the tensors of a PyTorch state dict without PyTorch and without running its pickle."""

import collections
import pickle
import zipfile
from pathlib import Path

import numpy as np

from pmjax.errors import UserError

MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a file from before PyTorch 1.6
DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
}


class _Tensor:
    """A tensor's position in its storage; in old files the values follow the pickle."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.key, self.dtype = storage
        self.offset, self.shape, self.strides = offset, shape, strides

    def read(self, storages: dict[str, bytes]) -> np.ndarray:
        flat = np.frombuffer(storages[self.key], self.dtype)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if min((self.offset, *self.strides, *self.shape)) < 0 or last >= flat.size:
            raise ValueError("a tensor extends beyond its storage")
        strides = [s * self.dtype.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides).copy()


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of tensors and nothing else: every other name is rejected."""

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in DTYPES:
            return DTYPES[name]
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no state dict needs")

    def persistent_load(self, pid):
        _, dtype, key, *_ = pid
        return key, dtype


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the arrays of a state dict saved by `torch.save`, in the zip or the older format.

    The pickle inside can only name `OrderedDict`, `_rebuild_tensor_v2` and the storage types, so
    a file cannot run code. Anything else, and a damaged file, is a `UserError`.
    """
    try:
        with open(path, "rb") as file:
            tensors, storages = (_zip if zipfile.is_zipfile(file) else _legacy)(file)
        return {name: t.read(storages) for name, t in tensors.items() if isinstance(t, _Tensor)}
    except OSError as error:
        raise UserError(f"Cannot read the weights file {path}: {error.strerror}.") from error
    except Exception as error:  # a hostile or damaged pickle may fail in any way
        raise UserError(
            f"{path} is not a readable PyTorch state dict ({error}). Download it again."
        ) from error


def _zip(file):
    archive = zipfile.ZipFile(file)
    (pickled,) = (name for name in archive.namelist() if name.endswith("/data.pkl"))
    folder = pickled.removesuffix("data.pkl") + "data/"
    storages = {
        name.removeprefix(folder): archive.read(name)
        for name in archive.namelist()
        if name.startswith(folder)
    }
    with archive.open(pickled) as stream:
        return _Unpickler(stream).load(), storages


def _legacy(file):
    """Four pickles (magic number, version, system, state dict), the keys, then the storages."""
    file.seek(0)
    if _Unpickler(file).load() != MAGIC:
        raise ValueError("it does not begin like one")
    _version, _system, tensors, keys = (_Unpickler(file).load() for _ in range(4))
    sizes = {t.key: t.dtype.itemsize for t in tensors.values() if isinstance(t, _Tensor)}
    storages = {}
    for key in keys:
        count = int.from_bytes(file.read(8), "little")
        storages[key] = file.read(count * sizes[key])
    return tensors, storages
