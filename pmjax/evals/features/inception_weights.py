"""Finds, checks and reads the 2015 Inception weights, in any of the formats they exist in."""

import contextlib
import functools
import hashlib
import io
import os
import pickle
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

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
            if not Path(path).expanduser().is_file():
                raise UserError(f"There is no weights file {path} ({source}).")
            return Path(path).expanduser()
    folder = cache_directory("inception")
    for name in NAMES:
        if (folder / name).is_file():
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
    formats = {".pb": _tensorflow, ".pickle": _flax, ".pkl": _flax}
    named = re.search(r"-([0-9a-f]{8,64})\.", path.name)
    if verify and path.suffix not in formats:
        _check(path, found, HASH)
    elif verify and named:
        _check(path, found, named[1])
    return formats.get(path.suffix, torch_file.load)(path), found


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
    with readable(path, "TensorFlow graph"):
        constants = constants_of(path.read_bytes())
        state = {}
        for name, scope in inception_graph.convolutions():
            state[f"{name}.conv.weight"] = constants[f"{scope}/conv2d_params"].transpose(3, 2, 0, 1)
            for ours, theirs in (
                ("weight", "gamma"),
                ("bias", "beta"),
                ("running_mean", "moving_mean"),
                ("running_var", "moving_variance"),
            ):
                state[f"{name}.bn.{ours}"] = constants[f"{scope}/batchnorm/{theirs}"]
        state["fc.weight"], state["fc.bias"] = (
            constants["softmax/weights"].T,
            constants["softmax/biases"],
        )
        return state


def _flax(path: Path) -> dict[str, np.ndarray]:
    """Reads jax-fid's `inception_v3_weights_fid.pickle`: nested dictionaries of NumPy arrays.

    It may lack the last layer, which FID does not need.
    """
    with readable(path, "Flax pickle"), path.open("rb") as file:
        tree = _Unpickler(file).load()
        state = {}
        for name, _ in inception_graph.convolutions():
            part = functools.reduce(lambda node, key: node[key], name.split("."), tree)
            state[f"{name}.conv.weight"] = part["conv"]["kernel"].transpose(3, 2, 0, 1)
            for ours, theirs in (
                ("weight", "scale"),
                ("bias", "bias"),
                ("running_mean", "mean"),
                ("running_var", "var"),
            ):
                state[f"{name}.bn.{ours}"] = part["bn"][theirs]
        if "fc" in tree:
            state["fc.weight"], state["fc.bias"] = tree["fc"]["kernel"].T, tree["fc"]["bias"]
        return state


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
    """Returns {node: value} of the float constants of a serialized `tensorflow.GraphDef`.

    Fields by their numbers in TensorFlow's .proto files: GraphDef.node 1; NodeDef.name 1, .op 2,
    .attr 5 (a map: key 1, value 2); AttrValue.tensor 8; TensorProto.dtype 1 (DT_FLOAT is 1),
    .tensor_shape 2 (dim 2, size 1), .tensor_content 4, .float_val 5 (packed or not).
    """
    values = {}
    for number, node in _fields(graph):
        if number != 1:
            continue
        fields = list(_fields(node))
        if (2, b"Const") not in fields:
            continue
        name = next(value for number, value in fields if number == 1).decode()
        for attribute in (dict(_fields(value)) for number, value in fields if number == 5):
            if attribute[1] == b"value":
                tensor = dict(_fields(attribute[2]))[8]
                if (1, 1) in _fields(tensor):
                    values[name] = _tensor(tensor)
    return values


def _tensor(message: bytes) -> np.ndarray:
    fields = list(_fields(message))
    dims = [
        dict(_fields(d)).get(1, 0) for n, s in fields if n == 2 for m, d in _fields(s) if m == 2
    ]
    content = b"".join(value for number, value in fields if number == 4)
    if not content:
        content = b"".join(value for number, value in fields if number == 5)
    array = np.frombuffer(content, "<f4")
    return np.full(dims, array[0]) if array.size == 1 else array.reshape(dims).copy()


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yields (number, value) of a protocol buffer's fields; fixed-size ones as their bytes."""
    file = io.BytesIO(message)

    def varint() -> int:
        value = shift = 0
        while True:
            (byte,) = file.read(1)
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while file.tell() < len(message):
        number, kind = divmod(varint(), 8)
        if kind == 0:
            yield number, varint()
            continue
        size = {1: lambda: 8, 2: varint, 5: lambda: 4}[kind]()
        value = file.read(size)
        if len(value) < size:
            raise ValueError("a field extends beyond the end")
        yield number, value
