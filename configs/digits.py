"""5000 real MNIST digits, 28×28.

python -m pmjax.main --config=configs/digits.py --workdir=runs/digits

About five minutes on two CPU cores. Expected over three seeds: Fréchet distance between features of
EfficientNet-Lite0, samples against test set, 60 ± 5 for the latent GAN, 115 ± 4 for a mixture of
ten Gaussians (101 for seed 0 on another machine, whose bits differ) and 410 ± 6 for a Gaussian on
the same embeddings; reconstruction MSE 0.0205 in [-1, 1].
"""

import default


def get_config(variant: str = ""):
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
