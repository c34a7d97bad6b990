"""The swiss roll: 5000 points in three dimensions, two latent coordinates (Figures 4 and 5).

    python -m pmjax.main --config=configs/swiss_roll.py --workdir=runs/swiss_roll
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "swiss_roll",
            "data.batch_size": 256,
            "nets": "mlp",
            "latent_dim": 2,
            "steps": 20_000,
            "steps_per_dispatch": 100,
            "optimizer.learning_rate": 1e-3,
            "optimizer.b1": 0.5,
            "optimizer.b2": 0.99,
            "prior_args.width": 128,
            "stage2.steps": 20_000,
            "stage2.optimizer.learning_rate": 5e-4,
            "stage2.optimizer.b1": 0.5,
            "eval.metrics": ("reconstruction", "latent", "wasserstein", "topology"),
        },
        {
            "runlocal": {
                "steps": 200,
                "stage2.steps": 200,
                "eval.metrics": ("reconstruction", "latent", "topology"),
            }
        },
    )
