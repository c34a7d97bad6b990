"""Fashion-MNIST, 28×28: 60000 + 10000 articles, by TensorFlow Datasets or from IDX files.

    python -m pmjax.main --config=configs/fashion_mnist.py --workdir=runs/fashion_mnist

TensorFlow Datasets prepares it once, with pip install ".[prepare]" and a network. With the four
official files already on disk, neither is needed, for instance those of
Debian's package dataset-fashion-mnist: --config.data.manual_dir=/usr/share/datasets/fashion-mnist

Fourteen minutes on one CPU core, evaluation included. Seen with seed 0, with omega1 = omega2 = 0.5
and a Gaussian base, the defaults then: reconstruction MSE 0.0355 in [-1, 1]; Fréchet distance
between features of EfficientNet-Lite0, 4000 samples against the test set, 547 for a mixture of ten
Gaussians, 1084 for a Gaussian, and 536 for the latent GAN (496 with the base of today, trained by
itself on the same embeddings); 57 for real images and 422 for reconstructed ones, so most of it is
the decoder's blur.
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "fashion_mnist",
            "steps": 4000,
            "stage2.steps": 12_000,
            "eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0", "classes"),
        },
        {"runlocal": default.RUNLOCAL},
    )
