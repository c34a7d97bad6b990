"""CelebA, 64×64 faces, with Mimicry's networks: the paper's main experiment, for TPU and GPU.

    python -m pmjax.main --config=configs/celeba.py --workdir=runs/celeba

Data: TensorFlow Datasets, or img_align_celeba.zip and list_eval_partition.txt in
--config.data.manual_dir=DIRECTORY. 25 epochs of 162770 images. Expected result: not yet measured.
"""

import default
from ml_collections import ConfigDict

EXAMPLES, EPOCHS, BATCH = 162_770, 25, 128


def get_config(variant: str = "") -> ConfigDict:
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "celeba",
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
            "stage2.steps": 100_000,
            "stage2.batch_size": 256,
            "eval.num_samples": 10_000,
        },
        {"runlocal": default.RUNLOCAL | default.SMALL_MIMICRY},
    )
