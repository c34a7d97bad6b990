"""Table 2: all methods on CIFAR-10, 32×32, with Mimicry's networks.

    python -m pmjax.reproduce cifar10 --workdir=runs/reproduce/cifar10 \
        --config.data.manual_dir=DIRECTORY

For accelerators: 19 runs of 25 epochs for each of three seeds; --methods=vae,aae,pm selects runs,
--jobs=8 uses eight GPUs. Not yet run in full. The paper has no values for its own method.
With 'fid' in --config.eval.metrics, the table has the paper's FID beside ours.
"""

from pmjax.reproductions.comparison import SMALL, comparison

REPRODUCTION = comparison(
    title="CIFAR-10: the paper's Table 2",
    config="cifar10.py",
    paper={  # which does not say which WAE
        "FID": {"vae": 189, "aae": 120, "wae_mmd": 173, "introvae": 133, "age": 271},
        "MSE": {"vae": 0.0626, "aae": 0.0245, "wae_mmd": 0.0607, "introvae": 0.0492, "age": 0.0608},
    },
    runlocal=SMALL | {"data.batch_size": 32},
)
