"""MNIST, 28×28: 60000 + 10000 digits, by TensorFlow Datasets or from IDX files.

    python -m pmjax.main --config=configs/mnist.py --workdir=runs/mnist

TensorFlow Datasets prepares it once, with pip install ".[prepare]" and a network. With the four
official files already on disk, neither is needed: --config.data.manual_dir=DIRECTORY.

As many steps and images as configs/fashion_mnist.py, so about fourteen minutes on one CPU core. It
has been run only as :runlocal, so no numbers are claimed.
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "mnist",
            "steps": 4000,
            "stage2.steps": 12_000,
            "eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0", "classes"),
        },
        {"runlocal": default.RUNLOCAL},
    )
