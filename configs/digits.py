"""5000 MNIST digits, 28×28.

    python -m pmjax.main --config=configs/digits.py --workdir=runs/digits

About five minutes on two CPU cores. Expected (mean and deviation of three seeds):

    fd_efficientnet_lite0/latent_gan    60 ± 5
    fd_efficientnet_lite0/gmm          115 ± 4 (one seed on another machine: 101)
    fd_efficientnet_lite0/gaussian     410 ± 6
    recon/mse                            0.0205
"""

import default
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "digits",
            "steps": 2000,
            "stage2.steps": 12_000,
            "eval.metrics": (
                "reconstruction",
                "latent",
                "fd_efficientnet_lite0",
                "classes",
                "topology",
                "energy",
                "c2st",
            ),
        },
        {
            "runlocal": default.RUNLOCAL
            | {"eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0")}
        },
    )
