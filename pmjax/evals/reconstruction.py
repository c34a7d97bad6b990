"""How well the autoencoder reconstructs the whole test set."""

import numpy as np

from pmjax.datasets import to_float
from pmjax.evals import CHUNK, Context

MIN_MSE01 = 1e-10  # an image reconstructed exactly counts as 100 dB


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns the mean squared error a value, and for images the error in [0, 1] and the PSNR.

    'recon/mse' is the mean over examples and their values, in [-1, 1] for images;
    'recon/mse01' is the same in [0, 1], a quarter of it; 'recon/psnr' in dB is the mean over
    images of 10 log₁₀(1 / mse01 of the image), at most 100. Nothing is rounded or clipped.
    """
    reconstructions = ctx.reconstructions("test")
    errors = []
    for start in range(0, len(reconstructions), CHUNK):
        x_hat = reconstructions[start : start + CHUNK]
        x = to_float(ctx.test.data[start : start + CHUNK])
        squares = np.square(np.asarray(x, np.float64) - x_hat)
        errors.append(squares.reshape(len(x), -1).mean(1))
    mse = np.concatenate(errors)
    if not ctx.has_images:
        return {"recon/mse": mse.mean()}
    psnr = -10 * np.log10(np.maximum(mse / 4, MIN_MSE01))
    return {"recon/mse": mse.mean(), "recon/mse01": mse.mean() / 4, "recon/psnr": psnr.mean()}
