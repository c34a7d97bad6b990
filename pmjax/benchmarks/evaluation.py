"""Measures the costs of evaluation: Inception's features and the Fréchet distance."""

import pickle
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from pmjax.benchmarks import distances, process
from pmjax.benchmarks.process import Process, columns, compile_column, ratio, spread
from pmjax.evals.features import inception_graph

VARIANT = "torch_fidelity"
BATCH, SIDE = 32, 64  # images, pixels
SIZE, DIM = 50_000, 2048  # of each set of features
DISTANCES = 3  # per side

# Height, width and channels of the kernels, in the order of `inception_graph`;
# {} stands for the channels that differ between the blocks of a kind.
_STEM = "3x3x32 3x3x32 3x3x64 1x1x80 3x3x192"
_KERNELS = {
    "A": "1x1x64 1x1x48 5x5x64 1x1x64 3x3x96 3x3x96 1x1x{0}",
    "B": "3x3x384 1x1x64 3x3x96 3x3x96",
    "C": "1x1x192 1x1x{0} 1x7x{0} 7x1x192 1x1x{0} 7x1x{0} 1x7x{0} 7x1x{0} 1x7x192 1x1x192",
    "D": "1x1x192 3x3x320 1x1x192 1x7x192 7x1x192 3x3x192",
    "E": "1x1x320 1x1x384 1x3x384 3x1x384 1x1x448 3x3x384 1x3x384 3x1x384 1x1x192",
}
_KERNELS["F"] = _KERNELS["E"]
_CHANNELS = {
    "Mixed_5b": 32, "Mixed_5c": 64, "Mixed_5d": 64, "Mixed_6b": 128, "Mixed_6c": 160,
    "Mixed_6d": 160, "Mixed_6e": 192,
}  # fmt: skip


def kernel_shapes() -> dict[str, tuple[int, ...]]:
    """Returns {convolution: shape HWIO of its kernel} of the published graph."""
    shapes: dict[str, tuple[int, ...]] = {}

    def branch(layers: Iterable[str], width: int, kernels: Iterator[str], prefix: str = "") -> int:
        """Adds a chain of layers; returns its number of output channels."""
        for layer in layers:
            sides = layer.partition("/")[0].split("|")
            if sides[0] in ("max", "mean"):
                continue
            found = [tuple(map(int, next(kernels).split("x"))) for _ in sides]
            for side, (height, across, out) in zip(sides, found, strict=True):
                shapes[prefix + side] = height, across, width, out
            width = sum(out for *_, out in found)
        return width

    width = branch(inception_graph.STEM, 3, iter(_STEM.split()))
    for block, kind in inception_graph.BLOCKS.items():
        kernels = iter(_KERNELS[kind].format(_CHANNELS.get(block)).split())
        branches = inception_graph.KINDS[kind]
        width = sum(branch(path.split(), width, kernels, f"{block}.") for path in branches)
    return shapes


def write_weights(path: Path) -> None:
    """Writes random weights of the published shapes, scaled so that activations stay bounded."""
    rng, flat = np.random.default_rng(0), {}
    ranges = {"scale": (0.5, 1.5), "bias": (-0.2, 0.5), "mean": (-0.3, 0.3), "var": (0.5, 1.5)}
    for name, shape in kernel_shapes().items():
        kernel = rng.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[:-1]))
        flat[f"{name}.conv.kernel"] = kernel.astype(np.float32)
        for key, ends in ranges.items():
            flat[f"{name}.bn.{key}"] = rng.uniform(*ends, shape[-1]).astype(np.float32)
    path.write_bytes(pickle.dumps(unflatten_dict(flat, sep="."), protocol=4))


def measure(*, peer: str | None, seconds: float) -> dict[str, Any]:
    """Measures the features and the distance, and prints both.

    Args:
      peer: a file of `pmjax/benchmarks/peers` with `Features`, or None for ours alone.
      seconds: of computing features, per side.

    Returns:
      The entry of the evaluation in bench's JSON.
    """
    report = {"features": measure_features(peer=peer, seconds=seconds)}
    print(features_table(report["features"], peer), flush=True)
    report["frechet"] = measure_distance(peer=bool(peer))
    print(distance_table(report["frechet"]), flush=True)
    return report


def measure_features(*, peer: str | None, seconds: float) -> dict[str, Any]:
    """Measures the features of a batch of random images, with random weights."""
    images = np.random.default_rng(0).integers(0, 256, (BATCH, SIDE, SIDE, 3), np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "random.pickle"
        write_weights(weights)
        sides = process.start(
            "Features", peer=peer, title="features", weights=weights, images=images
        )
        blocks = process.alternate(sides, blocks=process.BLOCKS, seconds=seconds, title="features")
    shape = [SIDE, SIDE, 3]
    result: dict[str, Any] = {"variant": VARIANT, "batch_size": BATCH, "image_shape": shape}
    ms = {name: [1e3 * b.seconds / b.units for b in done] for name, done in blocks.items()}
    for name, side in sides.items():
        result[name] = {
            **spread("images_per_s", [1e3 / value for value in ms[name]]),
            "images": sum(block.units for block in blocks[name]),
            "blocks_ms": ms[name],  # per image
            **side.about.environment(),
        }
    if peer:
        found, expected = sides[peer].about.first, sides["pmjax"].about.first
        result["ratio"] = ratio(ms[peer], ms["pmjax"])
        result["differs"] = float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
    return result


def measure_distance(*, peer: bool) -> dict[str, Any]:
    """Measures the Fréchet distance from features on; the peer is SciPy's."""
    title = "Fréchet distance"
    sides = {
        name: Process(distances.__name__, kind, size=SIZE, dim=DIM, title=f"{title}: {name}")
        for name, kind in (("pmjax", "Ours"), ("scipy", "SciPy"))[: 1 + peer]
    }
    blocks = process.alternate(sides, blocks=DISTANCES, seconds=0, title=title)
    result: dict[str, Any] = {"features": SIZE, "dimensions": DIM}
    for name, side in sides.items():
        taken = [block.seconds for block in blocks[name]]
        result[name] = {
            **spread("seconds", taken),
            "blocks_s": taken,
            "distance": side.about.first,
            **side.about.environment(),
        }
    if peer:
        ours, theirs = result["pmjax"], result["scipy"]
        result["ratio"] = ratio(theirs["blocks_s"], ours["blocks_s"])
        result["differs"] = abs(ours["distance"] / theirs["distance"] - 1)
    return result


def features_table(result: dict[str, Any], peer: str | None) -> str:
    """Returns the results for features as text."""
    height, width, _ = result["image_shape"]
    lines = [
        f"2048 features of Inception 2015, random weights, {result['variant']}: "
        f"batch {result['batch_size']}, images {height}×{width}, on {result['pmjax']['device']}",
        f"  {'':16}{'images/s':>10}  {'lowest-highest':>16}{'compile s':>11}",
    ]
    for name in ("pmjax", peer) if peer else ("pmjax",):
        side = result[name]
        lines.append(f"  {name:16}{columns(side, 'images_per_s', '.2f')}{compile_column(side)}")
    if peer:
        compared = process.describe_ratio(result["ratio"], peer)
        lines.append(f"  {compared}; the features differ by {result['differs']:.1g}")
    return "\n".join(lines)


def distance_table(result: dict[str, Any]) -> str:
    """Returns the results for the distance as text."""
    lines = [
        f"Fréchet distance of two sets of {result['features']} features of "
        f"{result['dimensions']} dimensions, statistics included, in float64",
        f"  {'':16}{'seconds':>10}  {'lowest-highest':>16}",
    ]
    for name in (side for side in ("pmjax", "scipy") if side in result):
        lines.append(f"  {name:16}{columns(result[name], 'seconds', '.2f')}")
    if "ratio" in result:
        compared = process.describe_ratio(result["ratio"], "numpy.cov and scipy.linalg.sqrtm")
        lines.append(f"  {compared}; the distances differ by {result['differs']:.1g}")
    return "\n".join(lines)
