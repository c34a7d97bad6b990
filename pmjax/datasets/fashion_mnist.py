"""Fashion-MNIST: 60000 + 10000 articles of clothing (Xiao et al. 2017), by TFDS or from IDX files.

Debian's package dataset-fashion-mnist puts the files in /usr/share/datasets/fashion-mnist, which
can be given as `manual_dir`.
"""

from pathlib import Path

from pmjax.datasets import idx_files
from pmjax.datasets.base import Source


def source(*, manual_dir: Path | None) -> Source:
    """Greyscale 28 x 28 in 10 classes."""
    if manual_dir:
        return idx_files.source(manual_dir)
    return Source(stock="fashion_mnist", version="3.0.1", size=28)
