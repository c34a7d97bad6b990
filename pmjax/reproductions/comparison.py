"""Compares all methods on the same images, nets and steps, as in the paper's Tables 1 and 2."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from pmjax.reporting.images import Figure
from pmjax.reproductions.base import Column, Reproduction, Run, Study, Table
from pmjax.reproductions.drawing import image_strips

# The methods of the paper's tables, then the rest of its related work, then the strongest simple
# baselines. Priors that fit any embedding have a row on the plain autoencoder and on ours.
PRIORS = ("gmm", "two_stage_vae", "flow_matching", "realnvp")
RUNS = (
    Run(name="pm", label="ours", also=(*PRIORS, "knn_jitter")),
    Run(
        name="pm_gaussian",
        label="ours, Gaussian z'",
        method="pm",
        overrides={"prior_args.base_prior": "gaussian"},
    ),
    Run(name="vae", label="VAE", also=("gmm",)),
    Run(name="aae", label="AAE", also=("gmm",)),
    Run(name="wae_mmd", label="WAE-MMD", also=("gmm",)),
    Run(name="wae_gan", label="WAE-GAN", also=("gmm",)),
    Run(name="introvae", label="IntroVAE", also=("gmm",)),
    Run(name="age", label="AGE", also=("gmm",)),
    Run(name="alae", label="ALAE", also=("gmm",)),
    # Without the warm-up, one seed in three collapsed to black images.
    Run(name="acai", label="ACAI", overrides={"optimizer.warmup": 100}),
    Run(name="mi_ae", label="MI-AE", also=("gmm",)),
    Run(name="infovae", label="InfoVAE", also=("gmm",)),
    Run(name="vae_gan", label="VAE-GAN", also=("gmm",)),
    Run(name="vq_vae", label="VQ-VAE"),
    Run(name="s_vae", label="S-VAE", also=("gmm",)),
    Run(name="sae", label="SAE", also=("gmm",)),
    Run(name="ae", label="AE", prior="gmm", also=(*PRIORS[1:], "latent_gan")),
    Run(name="rae", label="RAE"),
    Run(
        name="rae_sn",
        label="RAE-SN",
        method="rae",
        overrides={"method_args.regularizer": "spectral_norm"},
    ),
)
# Tiny perceptrons: each method runs end to end in seconds.
SMALL = {
    "nets": "mlp",
    "nets_args.width": 32,
    "latent_dim": 8,
    "steps": 200,
    "stage2.steps": 60,
    "stage2.steps_per_dispatch": 20,
    "eval.metrics": ("reconstruction",),
    "eval.num_samples": 64,
}
NONE: Mapping[str, Any] = MappingProxyType({})
FD = "fd_efficientnet_lite0"


def comparison(
    *,
    title: str,
    config: str,
    paper: Mapping[str, Mapping[str, float]] = NONE,
    overrides: Mapping[str, Any] = NONE,
    ours: Mapping[str, Any] = NONE,
    runlocal: Mapping[str, Any] = SMALL,
) -> Reproduction:
    """Returns the comparison of all methods on a config's data.

    Args:
      title: of the report.
      config: name of a file in configs/.
      paper: {'FID' or 'MSE': {run: the paper's value}}.
      overrides: of all runs.
      ours: overrides of the runs of the paper's method.
      runlocal: overrides of all runs in a smoke run.
    """

    def results(study: Study) -> Iterator[Table | Figure]:
        yield study.table("Reconstruction and generation", _columns(paper), NOTE)
        yield from image_strips(study)

    return Reproduction(
        title=title,
        results=results,
        config=config,
        runs=tuple(
            replace(run, overrides={**run.overrides, **ours}) if run.method == "pm" else run
            for run in RUNS
        ),
        overrides={"eval.metrics": ("reconstruction", "latent", "energy", FD)} | dict(overrides),
        runlocal=runlocal,
    )


NOTE = (
    "MSE: test images in [-1, 1]. FD: Fréchet distance to the test images in features of "
    "EfficientNet-Lite0, of samples, of reconstructed training images (the value of a perfect "
    "prior) and of midpoints between embeddings; it is not an FID and comparable only within this "
    "table. Energy: energy distance between latents and embeddings of test images (for variational "
    "methods, the posterior means), divided by that of training images. The first row of a method "
    "has its own prior, the others have priors fitted to the same embeddings; knn_jitter is a "
    "control that repeats the training set."
)


def _columns(paper: Mapping[str, Mapping[str, float]]) -> Iterator[Column]:
    yield Column(
        title="MSE",
        key="recon/mse",
        paper=paper.get("MSE", {}),
        protocol="mean squared error after 25 epochs, images in [-1, 1]" if paper else "",
    )
    yield Column(title="FD samples", key=FD + "/{prior}")
    yield Column(title="FD reconstructions", key=FD + "/recon_train")
    yield Column(title="samples / reconstructions", key=FD + "/{prior}", over=FD + "/recon_train")
    yield Column(title="FD midpoints", key=FD + "/midpoints")
    yield Column(title="FD floor", key=FD + "/floor")
    yield Column(title="energy / floor", key="energy/{prior}", over="energy/train")
    if "FID" in paper:
        yield Column(
            title="FID",
            key="fid/{prior}",
            paper=paper["FID"],
            protocol="FID of 50000 samples against all training images, after 25 epochs",
        )
