"""Table 1, Figures 7 and 8: all methods on CelebA, 64×64, with Mimicry's networks.

    python -m pmjax.reproduce celeba --workdir=runs/reproduce/celeba \
        --config.data.manual_dir=DIRECTORY

For accelerators: 19 runs of 25 epochs for each of three seeds; --methods=vae,aae,pm selects runs,
--jobs=8 uses eight GPUs. Not yet run in full. With 'fid' in
--config.eval.metrics, the table has the paper's FID beside ours.
"""

from pmjax.reproductions.comparison import SMALL, comparison

REPRODUCTION = comparison(
    title="CelebA: the paper's Table 1",
    config="celeba.py",
    paper={  # which does not say which WAE
        "FID": {"vae": 80, "aae": 101, "wae_mmd": 115, "introvae": 120, "age": 116, "pm": 62},
        "MSE": {
            "vae": 0.0383,
            "aae": 0.0255,
            "wae_mmd": 0.0626,
            "introvae": 0.0562,
            "age": 0.0889,
            "pm": 0.0165,
        },
    },
    runlocal=SMALL | {"data.batch_size": 32},
)
