"""The paper's Table 1 at a laptop's scale: all methods on Fashion-MNIST.

    python -m pmjax.reproduce fashion_mnist --workdir=runs/reproduce/fashion_mnist \
        --config.data.manual_dir=/usr/share/datasets/fashion-mnist

The directory is that of Debian's package dataset-fashion-mnist; without it, the data comes by
TensorFlow Datasets. 19 runs of configs/fashion_mnist.py for each of three seeds: days on two CPU
cores, for which --methods=pm,vae,ae and --config.steps=2000 are the remedy.
"""

from pmjax.reproductions._comparison import comparison

REPRODUCTION = comparison(title="All methods on Fashion-MNIST", config="fashion_mnist.py")
