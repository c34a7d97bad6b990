"""A directory of your own images of any size, mode and format, here resized to 32×32.

    python -m pmjax.main --config=configs/image_folder.py --config.data.path=DIRECTORY \
        --workdir=runs/images

Subdirectories train and test (or val) are used as the splits; otherwise a tenth of the images is
the test split.

Half an hour on one CPU core for 5000 images. Expected for 5204 + 578 sprites (the units in Debian's
package wesnoth-1.16-data) with --config.method_args.omega1=0.5 --config.method_args.omega2=0.5
--config.prior_args.base_prior=gaussian (seed 0):

    fd_efficientnet_lite0/latent_gan    508
    fd_efficientnet_lite0/gmm           517
    fd_efficientnet_lite0/gaussian      628
    fd_efficientnet_lite0/recon         311
    fd_efficientnet_lite0/floor         152
    recon/mse                             0.023

Color at 64×64 with an eighth of Mimicry's channels takes a quarter of an hour on one core; on the
sprites, recon/mse is 0.161, 0.141, 0.107 and 0.101 after 100, 200, 300 and 400 steps:

    python -m pmjax.main --config=configs/image_folder.py:runlocal --config.data.path=DIRECTORY \
        --config.data.size=64 --config.nets=mimicry --config.nets_args.scale=0.125 \
        --config.data.batch_size=32 --config.steps=400 --config.eval.every=100 --workdir=runs/images
"""

import default
from ml_collections import ConfigDict


def get_config(variant: str = "") -> ConfigDict:
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
