"""The swiss roll: 5000 points in three dimensions, two latent coordinates (Figures 4 and 5).

    python -m pmjax.main --config=configs/swiss_roll.py --workdir=runs/swiss_roll

Three to four minutes on one CPU core. Expected (mean and deviation of three seeds):

    w2/ratio                    1.16 ± 0.06
    topology/trustworthiness    0.996 ± 0.001

With --config.method_args.omega1=0.015 --config.method_args.omega2=0.015, and with
--config.eval.args.wasserstein.draws=20, which halves the error of w2/ratio, it is 1.11 ± 0.01.
"""

import default
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "swiss_roll",
            "data.batch_size": 256,
            "nets": "mlp",
            "nets_args.width": 128,
            "nets_args.layers": 4,
            "latent_dim": 2,
            "devices": 1,
            "steps": 10_000,
            "steps_per_dispatch": 100,
            "optimizer.learning_rate": 2e-3,
            "prior_args.base_prior": "gaussian",  # as in Figure 5; a fitted base is no better here
            "prior_args.critic_repeats": 3,
            "stage2.steps": 10_000,
            "stage2.batch_size": 256,
            "stage2.optimizer.learning_rate": 5e-4,
            "eval.metrics": (
                "reconstruction",
                "latent",
                "wasserstein",
                "swiss_roll",
                "energy",
                "topology",
            ),
        },
        {
            "runlocal": {
                "steps": 200,
                "stage2.steps": 200,
                "eval.metrics": ("reconstruction", "latent", "topology"),
            }
        },
    )
