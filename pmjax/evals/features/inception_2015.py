"""The features that FID is defined on: the Inception v3 of 2015, pooled to 2048 values.

The graph is in `inception_graph.py`, the files of weights are in `inception_weights.py`. Variants
are the ways in which common tools resize images to 299×299 and scale them to [-1, 1]; their FIDs
differ.
"""

import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from pmjax.errors import UserError, unknown
from pmjax.evals.features import batches, inception_graph, inception_weights

DIM = inception_graph.DIM
CLASSES = 1008
SIDE = inception_graph.SIDE
VARIANTS = ("pytorch_fid", "torch_fidelity", "clean_fid")


def stream(
    images: np.ndarray | Iterable[np.ndarray],
    *,
    variant: str = "pytorch_fid",
    weights: str | Path | None = None,
    verify: bool = True,
    precision: str = "float32",
    batch_size: int | None = None,
) -> Iterator[np.ndarray]:
    """Yields float32 [n, 2048] features of uint8 images [N, H, W, 1 or 3], or of parts of them.

    Args:
        images: gray is repeated to RGB.
        variant: how they are resized and scaled,
            'pytorch_fid': bilinearly, corners not aligned, no antialiasing, to 2 (x / 255) - 1;
            'torch_fidelity': as TensorFlow 1 did, from the upper left corner, to (x - 128) / 128;
            'clean_fid': by Pillow, bicubic with antialiasing, in float, clipped to [0, 255], to
            (x - 128) / 128.
        weights: a file; see `inception_weights.find`.
        verify: whether the weights must be the published ones.
        precision: of the net, or 'bfloat16'; images are resized in float32.
        batch_size: over all devices of this process (None: 32 on each).
    """
    if variant not in VARIANTS:
        raise unknown("variant of Inception's input", variant, VARIANTS)
    params = batches.cast(load_params(inception_weights.find(weights), verify)[0], precision)
    dtype: type = np.uint8
    if variant == "clean_fid":
        images, dtype = _resized_by_pillow(images), np.float32

    def apply(params: dict, x: jax.Array) -> jax.Array:
        return _features(params, _prepared(x, variant=variant))

    name = f"Inception 2015 ({variant})"
    batch_size = batch_size or 32 * jax.local_device_count()
    return batches.run(apply, params, images, name=name, batch_size=batch_size, dtype=dtype)


def logits(
    features: np.ndarray,
    *,
    bias: bool = False,
    weights: str | Path | None = None,
    verify: bool = True,
    **_: Any,
) -> np.ndarray:
    """Returns class scores float32 [N, 1008] of features [N, 2048].

    Without the bias, as TensorFlow and torch-fidelity compute the Inception Score.

    Raises:
        UserError: if the file of weights has no last layer.
    """
    path = inception_weights.find(weights)
    last = load_params(path, verify)[1]
    if last is None:
        raise UserError(
            f"{path} lacks the last layer, which scores classes. Only FID and KID work without it."
        )
    kernel, offset = last
    scores = features @ kernel
    return scores + offset if bias else scores


def identity(
    *,
    variant: str = "pytorch_fid",
    weights: str | Path | None = None,
    verify: bool = True,
    precision: str = "float32",
    batch_size: int | None = None,
) -> dict[str, str]:
    """Returns what the features depend on."""
    _, _, sha256 = load_params(inception_weights.find(weights), verify)
    return {"weights": sha256, "variant": variant, "precision": precision}


@functools.lru_cache(maxsize=2)
def load_params(path: Path, verify: bool = True) -> tuple[dict, tuple | None, str]:
    """Returns the convolutions, the last layer (kernel [2048, 1008], bias), and the file's sha256.

    The last layer is None where the file has none.

    Raises:
        UserError: if the file is damaged or has other weights.
    """
    state, sha256 = inception_weights.read(path, verify=verify)
    with inception_weights.readable(path, "set of weights"):
        last = None
        if "fc.weight" in state:
            last = state["fc.weight"].T.astype(np.float32), state["fc.bias"].astype(np.float32)
            if last[0].shape != (DIM, CLASSES) or last[1].shape != (CLASSES,):
                raise ValueError(  # torchvision's Inception, another one, has ImageNet's 1000
                    f"its last layer has {len(last[1])} classes of {len(last[0])} features, not "
                    f"{CLASSES} of {DIM}"
                )
        return inception_graph.fold(state), last, sha256


@jax.jit
@jax.default_matmul_precision("highest")  # the same numbers on every device
def _features(params: Any, x: jax.Array) -> jax.Array:
    return inception_graph.forward(params, x.astype(params["Conv2d_1a_3x3"][0].dtype))


@functools.partial(jax.jit, static_argnames="variant")
def _prepared(x: jax.Array, *, variant: str) -> jax.Array:
    """Returns images [N, H, W, 1 or 3] of values in [0, 255] as inputs of the net."""
    x = jnp.broadcast_to(x.astype(jnp.float32), (*x.shape[:3], 3))
    if variant != "clean_fid":  # whose images have that size already
        half = 0.5 if variant == "pytorch_fid" else 0.0
        x = jnp.einsum("nhwc,ih->niwc", x, _bilinear(x.shape[1], half), precision="highest")
        x = jnp.einsum("nhwc,jw->nhjc", x, _bilinear(x.shape[2], half), precision="highest")
    return x / 127.5 - 1 if variant == "pytorch_fid" else (x - 128) / 128


def _bilinear(length: int, half: float) -> np.ndarray:
    """Returns the weights [299, length] of a resize without antialiasing.

    Pixel i of the result is at (i + half) · length / 299 - half. A `half` of 0.5 is PyTorch with
    align_corners=False, 0 is TensorFlow 1.
    """
    place = np.maximum((np.arange(SIDE) + half) * length / SIDE - half, 0)
    below = np.minimum(np.floor(place).astype(int), length - 1)
    above = np.minimum(below + 1, length - 1)
    rows = np.zeros((SIDE, length), np.float32)
    np.add.at(rows, (np.arange(SIDE), below), 1 - (place - below))
    np.add.at(rows, (np.arange(SIDE), above), place - below)
    return rows


def _resized_by_pillow(images: np.ndarray | Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yields float32 images [n, 299, 299, C], a few at a time, as clean-fid resizes them."""
    for part in batches.parts_of(images):
        batches.check(part, "Inception 2015 (clean_fid)")
        for start in range(0, len(part), 32):
            yield np.stack([_by_pillow(image) for image in np.asarray(part[start : start + 32])])


def _by_pillow(image: np.ndarray) -> np.ndarray:
    size = (SIDE, SIDE)
    channels = (Image.fromarray(channel) for channel in np.moveaxis(image, 2, 0).astype(np.float32))
    resized = [np.asarray(c.resize(size, Image.Resampling.BICUBIC)) for c in channels]
    return np.stack(resized, -1).clip(0, 255)  # bicubic overshoots at edges
