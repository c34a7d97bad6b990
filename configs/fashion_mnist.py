"""Fashion-MNIST, 28×28: 60000 + 10000 articles of clothing.

    python -m pmjax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

Data: TensorFlow Datasets (needs pip install ".[prepare]" once), or the four official files in
--config.data.manual_dir=DIRECTORY; Debian's package dataset-fashion-mnist installs them in
/usr/share/datasets/fashion-mnist.

Fourteen minutes on one CPU core. Expected with --config.method_args.omega1=0.5
--config.method_args.omega2=0.5 --config.prior_args.base_prior=gaussian (seed 0):

    fd_efficientnet_lite0/latent_gan    536 (496 with the default base)
    fd_efficientnet_lite0/gmm           547
    fd_efficientnet_lite0/gaussian     1084
    fd_efficientnet_lite0/recon         422
    fd_efficientnet_lite0/floor          57
    recon/mse                             0.0355
"""

import default
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "fashion_mnist",
            "steps": 4000,
            "stage2.steps": 12_000,
            "eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0", "classes"),
        },
        {"runlocal": default.RUNLOCAL},
    )
