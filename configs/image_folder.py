"""A directory of your own images, of any size, mode and format; here at 32×32.

    python -m pmjax.main --config=configs/image_folder.py --config.data.path=DIRECTORY \
        --workdir=runs/images

With the subfolders train and test, these are the splits; else a tenth is kept for the test.

Half an hour on one CPU core for five thousand images. Seen with seed 0 on 5204 + 578 sprites (the
units of Battle for Wesnoth, Debian's package wesnoth-1.16-data), with omega1 = omega2 = 0.5 and a
Gaussian base, the defaults then: reconstruction MSE 0.023 in [-1, 1]; Fréchet distance between
features of EfficientNet-Lite0, 4000 samples against the test set, 517 for a mixture of ten
Gaussians, 628 for a Gaussian, and 508 for the latent GAN; 152 for real images and 311 for
reconstructed ones.

Colour at 64×64 with an eighth of Mimicry's nets, to see them learn on a laptop (a quarter of an
hour on a busy core):

    python -m pmjax.main --config=configs/image_folder.py:runlocal --config.data.path=DIRECTORY \
        --config.data.size=64 --config.nets=mimicry --config.nets_args.scale=0.125 \
        --config.data.batch_size=32 --config.steps=400 --config.eval.every=100 --workdir=runs/images

The sprites' reconstruction MSE was 0.171, 0.144, 0.106 and 0.099 after each hundred steps: their
silhouettes and main colours.
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "image_folder",
            "data.size": 32,
            "latent_dim": 128,
            "steps": 5000,
            "stage2.steps": 16_000,
        },
        {"runlocal": default.RUNLOCAL},
    )
