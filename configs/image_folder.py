"""A directory of your own images, of any size, mode and format; here at 32×32.

    python -m pmjax.main --config=configs/image_folder.py --config.data.path=DIRECTORY \
        --workdir=runs/images

With the subfolders train and test, these are the splits; else a tenth is kept for the test.

10000 + 20000 steps, with wider nets than digits: an hour or more on two CPU cores. It has been run
only as :runlocal, so no numbers are claimed.
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
