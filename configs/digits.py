"""5000 real MNIST digits, 28×28.

python -m pmjax.main --config=configs/digits.py --workdir=runs/digits
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "digits",
            "steps": 2000,
            "stage2.steps": 6000,
            "eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0", "classes"),
        },
        {
            "runlocal": default.RUNLOCAL
            | {"eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0")}
        },
    )
