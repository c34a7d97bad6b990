"""CIFAR-10, 32×32, with Mimicry's networks, for TPU and GPU.

    python -m pmjax.main --config=configs/cifar10.py --workdir=runs/cifar10

Data: TensorFlow Datasets, or cifar-10-python.tar.gz in --config.data.manual_dir=DIRECTORY.
25 epochs as in the paper; the variant 100epochs trains for 100. Expected result: not yet measured.
"""

import default
from ml_collections import ConfigDict

EXAMPLES, EPOCHS, BATCH = 50_000, 25, 64


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; variants: 100epochs, paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "cifar10",
            "data.batch_size": BATCH,
            "nets": "mimicry",
            "precision": "bfloat16",
            "latent_dim": 128,
            "steps": EPOCHS * EXAMPLES // BATCH,
            "steps_per_dispatch": 20,
            "optimizer.learning_rate": 2e-4,
            "optimizer.b1": 0.0,
            "optimizer.b2": 0.9,
            "prior_args.width": 512,
            "stage2.steps": 50_000,
            "stage2.batch_size": 256,
            "eval.num_samples": 10_000,
            "eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0", "classes"),
        },
        {
            "100epochs": {"steps": 100 * EXAMPLES // BATCH},
            "runlocal": default.RUNLOCAL | default.SMALL_MIMICRY,
        },
    )
