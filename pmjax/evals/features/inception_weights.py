"""Finds, checks and reads the 2015 Inception weights, in any of the formats they exist in."""

import contextlib
import functools
import hashlib
import operator
import os
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.graph_pb2 import GraphDef
from tensorboardX.proto.tensor_pb2 import TensorProto
from tensorboardX.proto.types_pb2 import DT_FLOAT

from pmjax import paths
from pmjax.errors import UserError
from pmjax.evals.features import inception_graph, torch_file
from pmjax.evals.features.statistics import cache_directory

URL = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/"
    "pt_inception-2015-12-05-6726825d.pth"
)
HASH = "6726825d"  # start of the sha256 of the published state dicts, and part of their names
VARIABLE = "PMJAX_INCEPTION_WEIGHTS"
NAMES = (  # in the cache, by preference
    "pt_inception-2015-12-05-6726825d.pth",
    "weights-inception-2015-12-05-6726825d.pth",
    "classify_image_graph_def.pb",
    "inception_v3_weights_fid.pickle",
)


def find(weights: str | Path | None = None) -> Path:
    """Returns the file of the weights: the one given, $PMJAX_INCEPTION_WEIGHTS, cached, or fetched.

    Raises:
        UserError: if there is none and the download fails, with what to put where.
    """
    for path, source in (
        (weights, "--weights or --config.eval.inception_weights"),
        (os.environ.get(VARIABLE), VARIABLE),
    ):
        if path:
            if not (file := paths.local(path)).is_file():
                raise UserError(f"There is no weights file {path} ({source}).")
            return file
    folder = cache_directory("inception")
    for name in NAMES:
        if os.path.isfile(folder / name):  # False without permission
            return folder / name
    try:
        return _download(folder)
    except OSError as error:
        raise UserError(
            f"FID needs the Inception weights of 2015, and they cannot be downloaded ({error}). "
            f"Put {NAMES[0]} (from {URL}), or one of {', '.join(NAMES[1:])}, into {folder}, or "
            "give its path as --weights=FILE (of pmjax.evaluate), as "
            f"--config.eval.inception_weights=FILE or in the variable {VARIABLE}. Metrics such as "
            "fd_efficientnet_lite0 need no download."
        ) from error


def _download(folder: Path) -> Path:
    """Downloads the published state dict; any other content is deleted."""
    folder.mkdir(parents=True, exist_ok=True)
    part = folder / f".{NAMES[0]}.{os.getpid()}"
    try:
        with urllib.request.urlopen(URL, timeout=20) as answer, part.open("wb") as file:
            while block := answer.read(1 << 20):
                file.write(block)
        _check(part, sha256(part), HASH)
        return part.replace(folder / NAMES[0])
    finally:
        part.unlink(missing_ok=True)


def read(path: Path, *, verify: bool = True) -> tuple[dict[str, np.ndarray], str]:
    """Returns the weights, named as in PyTorch's state dict, and the file's sha256.

    A state dict must have the published hash. A file of another format, which has no published
    hash, must have the one in its name, if there is one. `verify=False` accepts any weights.

    Raises:
        UserError: if the file is another one, truncated, damaged or of an unknown format.
    """
    found = sha256(path)
    tensorflow, flax = ("TensorFlow graph", _tensorflow), ("Flax pickle", _flax)
    formats = {".pb": tensorflow, ".pickle": flax, ".pkl": flax}
    what, load = formats.get(path.suffix, ("", torch_file.load))
    named = re.findall(r"-([0-9a-f]{8,64})\.", path.name) if what else [HASH]
    if verify and named:
        _check(path, found, named[0])
    with readable(path, what) if what else contextlib.nullcontext():
        return load(path), found


@functools.lru_cache(maxsize=16)
def _sha256(path: Path, _size: int, _time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256(path: Path) -> str:
    """Returns the sha256 of a file, which is read again only if it changes."""
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns)


def _check(path: Path, found: str, expected: str) -> None:
    if not found.startswith(expected):
        raise UserError(
            f"{path} should have a sha256 that begins with {expected} and has {found[:16]}…: it is "
            "truncated or another file. Download it again, or accept other weights with "
            "--unverified (verify=False)."
        )


def _tensorflow(path: Path) -> dict[str, np.ndarray]:
    """Reads `classify_image_graph_def.pb`."""
    constants = constants_of(path.read_bytes())
    state = {
        "fc.weight": constants["softmax/weights"].T,
        "fc.bias": constants["softmax/biases"],
    }
    for name, scope in inception_graph.convolutions():
        norm = f"{scope}/batchnorm/"
        state |= _named(
            name,
            constants[f"{scope}/conv2d_params"],
            [constants[norm + key] for key in ("gamma", "beta", "moving_mean", "moving_variance")],
        )
    return state


def _flax(path: Path) -> dict[str, np.ndarray]:
    """Reads jax-fid's `inception_v3_weights_fid.pickle`: nested dictionaries of NumPy arrays.

    It may lack the last layer, which FID does not need.
    """
    with path.open("rb") as file:
        tree = _Unpickler(file).load()
    state: dict[str, np.ndarray] = {}
    for name, _ in inception_graph.convolutions():
        part = functools.reduce(operator.getitem, name.split("."), tree)
        norm = [part["bn"][key] for key in ("scale", "bias", "mean", "var")]
        state |= _named(name, part["conv"]["kernel"], norm)
    if "fc" in tree:
        state |= {"fc.weight": tree["fc"]["kernel"].T, "fc.bias": tree["fc"]["bias"]}
    return state


def _named(name: str, kernel: np.ndarray, norm: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Returns a convolution (HWIO) and its BatchNorm under the names of PyTorch's state dict."""
    keys = "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"
    arrays = kernel.transpose(3, 2, 0, 1), *norm
    return {f"{name}.{key}": array for key, array in zip(keys, arrays, strict=True)}


@contextlib.contextmanager
def readable(path: Path, what: str) -> Iterator[None]:
    """Turns any error that a damaged or hostile file causes into a `UserError`."""
    try:
        yield
    except Exception as error:  # a hostile or damaged file may fail in any way
        missing = "it lacks " if isinstance(error, KeyError) else ""
        raise UserError(
            f"{path} is not a readable {what} of Inception ({missing}{error}). Download it again."
        ) from error


def _frombuffer(buffer: bytes, dtype: Any, shape: Any, order: Any, *_: Any) -> np.ndarray:
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


class _Unpickler(pickle.Unpickler):
    """Builds dictionaries of NumPy arrays and nothing else: every other name is rejected."""

    # By the last part of their module, whose other parts depend on NumPy's version.
    ARRAYS = {
        ("multiarray", "_reconstruct"): np.zeros(1).__reduce__()[0],
        ("numeric", "_frombuffer"): _frombuffer,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        short = module.rpartition(".")[2], name
        if module.partition(".")[0] == "numpy" and short in self.ARRAYS:
            return self.ARRAYS[short]
        if (module, name) == ("_codecs", "encode"):  # how protocols before 3 write bytes
            return lambda text, encoding: text.encode("latin1")
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no weights need")


def constants_of(graph: bytes) -> dict[str, np.ndarray]:
    """Returns {node: value} of the float constants of a serialized `tensorflow.GraphDef`."""
    nodes = GraphDef.FromString(graph).node
    tensors = {node.name: node.attr["value"].tensor for node in nodes if node.op == "Const"}
    return {name: _tensor(each) for name, each in tensors.items() if each.dtype == DT_FLOAT}


def _tensor(tensor: TensorProto) -> np.ndarray:
    dims = [dim.size for dim in tensor.tensor_shape.dim]
    array = np.frombuffer(tensor.tensor_content, "<f4")
    if not array.size:
        array = np.array(tensor.float_val, np.float32)
    return np.full(dims, array[0]) if array.size == 1 else array.reshape(dims).copy()
