"""Lines at random angles, 32×32: the interpolation task of ACAI (Berthelot et al., 2019).

    python -m pmjax.main --config=configs/lines.py --workdir=runs/lines

--config.method=acai trains ACAI itself; `--help` lists the other methods.
"""

import default
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; variants: paper, author, runlocal."""
    metrics = ("reconstruction", "latent", "lines")
    return default.get_config(
        variant,
        {
            "data.name": "lines",
            "latent_dim": 64,  # 2×2×16 in the paper
            "steps": 2000,
            # Most pixels are black: without a warm-up, G's tanh may saturate at black.
            "optimizer.warmup": 200,
            "stage2.steps": 4000,
            "eval.metrics": metrics,
        },
        {"runlocal": default.RUNLOCAL | {"eval.metrics": metrics}},
    )
