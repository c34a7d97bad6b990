"""The Inception v3 graph of 2015 that defines FID, as a table and its forward pass.

Szegedy et al., arXiv 1512.00567, as in TensorFlow's `inception-2015-12-05`: BatchNorm with ε 1e-3
and no scale, average pools that do not count their padding, and a maximum in Mixed_7c. Names are
those of torchvision and pytorch-fid.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

BN_EPS = 1e-3
SIDE = 299  # pixels
DIM = 2048

# Layers in order. '/2' halves the size without padding, '/1' is without padding, others preserve
# the size; 'a|b' are parallel.
STEM = (
    "Conv2d_1a_3x3/2", "Conv2d_2a_3x3/1", "Conv2d_2b_3x3", "max/2", "Conv2d_3b_1x1",
    "Conv2d_4a_3x3/1", "max/2",
)  # fmt: skip
_FORKS = (
    "branch1x1",
    "branch3x3_1 branch3x3_2a|branch3x3_2b",
    "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3a|branch3x3dbl_3b",
)
_DOUBLE_7X7 = "branch7x7dbl_1 branch7x7dbl_2 branch7x7dbl_3 branch7x7dbl_4 branch7x7dbl_5"
# Branches, in the order of their outputs.
KINDS = {
    "A": (
        "branch1x1",
        "branch5x5_1 branch5x5_2",
        "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3",
        "mean branch_pool",
    ),
    "B": ("branch3x3/2", "branch3x3dbl_1 branch3x3dbl_2 branch3x3dbl_3/2", "max/2"),
    "C": ("branch1x1", "branch7x7_1 branch7x7_2 branch7x7_3", _DOUBLE_7X7, "mean branch_pool"),
    "D": (
        "branch3x3_1 branch3x3_2/2",
        "branch7x7x3_1 branch7x7x3_2 branch7x7x3_3 branch7x7x3_4/2",
        "max/2",
    ),
    "E": (*_FORKS, "mean branch_pool"),
    "F": (*_FORKS, "max branch_pool"),
}
BLOCKS = {
    "Mixed_5b": "A", "Mixed_5c": "A", "Mixed_5d": "A", "Mixed_6a": "B", "Mixed_6b": "C",
    "Mixed_6c": "C", "Mixed_6d": "C", "Mixed_6e": "C", "Mixed_7a": "D", "Mixed_7b": "E",
    "Mixed_7c": "F",
}  # fmt: skip


def convolutions() -> Iterator[tuple[str, str]]:
    """Yields (name, name in TensorFlow's graph) of every convolution.

    TensorFlow's scopes are numbered in order of creation: blocks 'mixed', 'mixed_1', …; in a block,
    'conv' is the branch of a single convolution, 'tower', 'tower_1', … are the others, and inside
    these are 'conv', 'conv_1', …, with a scope 'mixed' around parallel ones. The
    list is that of torch-fidelity's `convert_inception_weights.py`.
    """
    stem = [layer.partition("/")[0] for layer in STEM if not _is_pool(layer)]
    yield from zip(stem, _numbered("conv"), strict=False)
    for (block, kind), scope in zip(BLOCKS.items(), _numbered("mixed"), strict=False):
        towers = _numbered("tower")
        for branch in KINDS[kind]:
            layers = [layer for layer in branch.split() if not _is_pool(layer)]
            if not layers:
                continue
            alone = branch == layers[0] and "|" not in branch
            tower = scope if alone else f"{scope}/{next(towers)}"
            for layer, conv in zip(layers, _numbered("conv"), strict=False):
                sides = layer.partition("/")[0].split("|")
                names = [conv] if len(sides) == 1 else [f"mixed/{c}" for c in ("conv", "conv_1")]
                for side, name in zip(sides, names, strict=True):
                    yield f"{block}.{side}", f"{tower}/{name}"


def fold(state: dict[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns {convolution: (kernel HWIO, bias)} with the BatchNorms folded in, float32.

    Args:
        state: as in PyTorch's state dict.

    Raises:
        KeyError: if an array is missing; ValueError: if one has another size.
    """
    params = {}
    for name, _ in convolutions():
        weight, beta, mean, var = (
            state[f"{name}.{part}"].astype(np.float64)
            for part in ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var")
        )
        scale = state[f"{name}.bn.weight"] / np.sqrt(var + BN_EPS)
        kernel = weight.transpose(2, 3, 1, 0) * scale
        params[name] = kernel.astype(np.float32), (beta - mean * scale).astype(np.float32)
    out = jax.eval_shape(forward, params, jax.ShapeDtypeStruct((1, SIDE, SIDE, 3), np.float32))
    if out.shape != (1, DIM):
        raise ValueError(f"features have {out.shape[1]} dimensions, not {DIM}")
    return params


def forward(params: dict, x: jax.Array) -> jax.Array:
    """Returns the pooled features float32 [N, 2048] of scaled RGB images [N, 299, 299, 3]."""
    for layer in STEM:
        x = _layer(params, layer, x)
    for block, kind in BLOCKS.items():
        mine = {n.removeprefix(f"{block}."): p for n, p in params.items() if n.startswith(block)}
        x = _block(mine, KINDS[kind], x)
    return x.mean((1, 2), dtype=jnp.float32)


def _block(params: dict, branches: Sequence[str], x: jax.Array) -> jax.Array:
    """Computes the branches; those that begin with a 1×1 convolution of x share one product.

    A mean over neighbors is computed after the convolution that follows it, on fewer channels: the
    two commute, because the mean's weights sum to 1 and the convolution's ReLU comes last.
    """
    paths = [branch.split() for branch in branches]
    first = {}
    for i, path in enumerate(paths):
        name = path[1] if path[0] == "mean" else path[0]
        if name in params and params[name][0].shape[:2] == (1, 1):
            first[i] = name
    kernels, biases = zip(*(params[name] for name in first.values()), strict=True)
    y = x @ jnp.concatenate(kernels, -1)[0, 0] + jnp.concatenate(biases)
    ends = np.cumsum([len(bias) for bias in biases])[:-1]
    started = dict(zip(first, jnp.split(y, ends, axis=-1), strict=True))
    outputs = []
    for i, path in enumerate(paths):
        y, rest = x, path
        if i in started:
            y, rest = started[i], path[1:]
            if path[0] == "mean":
                y, rest = _mean(y), path[2:]
            y = jax.nn.relu(y)
        for layer in rest:
            y = _layer(params, layer, y)
        outputs.append(y)
    return jnp.concatenate(outputs, -1)


def _layer(params: dict, layer: str, x: jax.Array) -> jax.Array:
    name, _, stride = layer.partition("/")
    if name == "max":
        outside = float(jnp.finfo(x.dtype).min)
        return _along_both(jnp.maximum, x, int(stride or 1), not stride, outside)
    convs = (params[side] for side in name.split("|"))
    ys = [_conv(x, kernel, bias, int(stride or 1), pad=not stride) for kernel, bias in convs]
    return ys[0] if len(ys) == 1 else jnp.concatenate(ys, -1)


def _conv(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int, *, pad: bool) -> jax.Array:
    if kernel.shape[:2] == (1, 1):
        return jax.nn.relu(x @ kernel[0, 0] + bias)
    y = lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME" if pad else "VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    return jax.nn.relu(y + bias)


def _mean(x: jax.Array) -> jax.Array:
    """Averages 3×3 neighbors, without padding."""
    height, width = (np.r_[2, np.full(n - 2, 3), 2] for n in x.shape[1:3])
    counts = (height[:, None] * width)[..., None].astype(x.dtype)
    return _along_both(jnp.add, x, 1, True, 0) / counts


def _along_both(
    join: Callable[[jax.Array, jax.Array], jax.Array],
    x: jax.Array,
    stride: int,
    pad: bool,
    outside: float,
) -> jax.Array:
    """Joins 3×3 neighbors, columns first: a few slices, which XLA fuses."""
    for axis in (2, 1):
        if pad:
            around = [(0, 0)] * 4
            around[axis] = (1, 1)
            x = jnp.pad(x, around, constant_values=outside)
        count = (x.shape[axis] - 3) // stride + 1
        a, b, c = (
            lax.slice_in_dim(x, i, i + stride * (count - 1) + 1, stride, axis) for i in range(3)
        )
        x = join(join(a, b), c)
    return x


def _is_pool(layer: str) -> bool:
    return layer.partition("/")[0] in ("max", "mean")


def _numbered(name: str) -> Iterator[str]:
    """Returns name, name_1, name_2 and so on."""
    return itertools.chain([name], (f"{name}_{i}" for i in itertools.count(1)))
