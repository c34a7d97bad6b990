"""Fashion-MNIST: 60000 + 10000 articles of clothing (Xiao et al. 2017), from TFDS or IDX files.

Debian's package dataset-fashion-mnist installs the files in /usr/share/datasets/fashion-mnist,
which `manual_dir` accepts.
"""

from pathlib import Path

from pmjax.datasets import idx_files
from pmjax.datasets.base import Source

ORIGIN = "Debian's package dataset-fashion-mnist"


def source(*, manual_dir: Path | None) -> Source:
    """Grayscale 28 x 28 in 10 classes."""
    if manual_dir:
        return idx_files.from_directory(manual_dir, "fashion_mnist", origin=ORIGIN)
    return Source(stock="fashion_mnist", version="3.0.1", size=28)
