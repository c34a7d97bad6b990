"""Lines at random angles, 32×32: the interpolation task of ACAI (Berthelot et al., 2019).

python -m pmjax.main --config=configs/lines.py --workdir=runs/lines

Other methods by --config.method=acai and so on.
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    metrics = ("reconstruction", "latent", "lines")
    return default.get_config(
        variant,
        {
            "data.name": "lines",
            "latent_dim": 64,  # theirs are 2×2×16
            "steps": 2000,
            # Nearly all is black: the first large steps would drive G's tanh to black for good.
            "optimizer.warmup": 200,
            "stage2.steps": 4000,
            "eval.metrics": metrics,
        },
        {"runlocal": default.RUNLOCAL | {"eval.metrics": metrics}},
    )
