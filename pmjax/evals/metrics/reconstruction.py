"""How well the autoencoder reconstructs the whole test set."""

import numpy as np
from scipy.ndimage import gaussian_filter

from pmjax.datasets.batches import to_float
from pmjax.evals.base import Metric, Table, higher, lower
from pmjax.evals.context import Context

METRIC = Metric(
    Table(
        "recon",
        "Reconstruction",
        "How close G(E(x)) is to x, over the whole test set.",
        {
            "mse": lower(
                "mean squared error in the data's own units, [-1, 1] for images; lower is better"
            ),
            "mse01": lower("the same for values in [0, 1]: a quarter of it"),
            "psnr": higher("peak signal-to-noise ratio in dB; higher is better"),
            "ssim": higher("structural similarity; 1 is perfect"),
        },
    ),
)
MIN_MSE01 = 1e-10  # an image reconstructed exactly counts as 100 dB
WINDOW, SIGMA = 11, 1.5  # pixels
FITS_CACHE = 32  # images at a time, which stay in the CPU's cache
C1, C2 = 0.01**2, 0.03**2  # of values in [0, 1]


def evaluate(ctx: Context) -> dict[str, float]:
    """Returns the mean squared error per value and, for images, that in [0, 1], PSNR and SSIM.

    'recon/psnr' is the mean over images of 10 log₁₀(1 / mse01 of the image), at most 100;
    'recon/ssim' that of `ssim`. Reconstructions are neither rounded nor clipped.
    """
    errors, similarities, start = [], [], 0
    for x_hat in ctx.reconstructed("test"):
        x = to_float(ctx.test.data[start : start + len(x_hat)])
        start += len(x_hat)
        squares = np.square(np.asarray(x, np.float64) - x_hat)
        errors.append(squares.reshape(len(x), -1).mean(1))
        if ctx.has_images:
            similarities.append(ssim((x + 1) / 2, (x_hat + 1) / 2))
    mse = np.concatenate(errors)
    if not ctx.has_images:
        return {"recon/mse": mse.mean()}
    psnr = -10 * np.log10(np.maximum(mse / 4, MIN_MSE01))
    return {
        "recon/mse": mse.mean(),
        "recon/mse01": mse.mean() / 4,
        "recon/psnr": psnr.mean(),
        "recon/ssim": np.concatenate(similarities).mean(),
    }


def ssim(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Returns the structural similarity [N] of images [N, H, W, C] in [0, 1].

    Wang et al., 2004: a Gaussian window of 11 pixels and σ = 1.5 (for smaller images the largest
    odd one that fits), K₁ = .01, K₂ = .03, the mean over all positions inside the image and over
    channels. Population moments, no downsampling.
    """
    height, width = x.shape[1:3]
    size = min(WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    edge = size // 2
    inside = slice(edge, -edge or None)

    def smooth(images: np.ndarray) -> np.ndarray:
        smoothed = gaussian_filter(images, SIGMA, radius=edge, axes=(1, 2))
        return smoothed[:, inside, inside]  # [n, H - size + 1, W - size + 1, C]

    result = np.empty(len(x))
    for start in range(0, len(x), FITS_CACHE):
        part = slice(start, start + FITS_CACHE)
        a, b = (images[part].astype(np.float64) for images in (x, y))
        mean_a, mean_b = smooth(a), smooth(b)
        var = smooth(a * a) + smooth(b * b) - mean_a**2 - mean_b**2
        cov = smooth(a * b) - mean_a * mean_b
        similarity = (2 * mean_a * mean_b + C1) * (2 * cov + C2)
        similarity /= (mean_a**2 + mean_b**2 + C1) * (var + C2)
        result[part] = similarity.mean((1, 2, 3))
    return result
