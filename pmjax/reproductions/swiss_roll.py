"""Figures 4 and 5: the swiss roll through every method's two latent coordinates.

python -m pmjax.reproduce swiss_roll --workdir=runs/reproduce/swiss_roll

17 runs for each of three seeds, one to ten minutes each on a CPU core; --jobs=2 takes two at once.
"""

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from pmjax.datasets.swiss_roll import unroll
from pmjax.reporting.images import Figure
from pmjax.reporting.plots import Scatter, cube, scatter_rows
from pmjax.reproductions.base import Column, Reproduction, Run, Study, Table
from pmjax.reproductions.drawing import trained

ALSO = ("gmm", "flow_matching")
# The methods' default weights of the KL divergence are for images. Here a coordinate's variance is
# about 0.2, below the 0.5 of their p(x|z), so that posteriors would collapse (Proposition 1; see
# `theory`). This one stands for a p(x|z) with a standard deviation of 0.1.
WEIGHT = 0.02
# A sphere has two dimensions in three coordinates; SAE centres its coordinates, which costs one.
SPHERE = {"latent_dim": 3}
RUNS = (
    Run(
        name="vae",
        label="VAE",
        method="vae",
        also=ALSO,
        overrides={"method_args.variance": WEIGHT / 2},
    ),
    Run(name="aae", label="AAE", method="aae", also=ALSO),
    Run(name="alae", label="ALAE", method="alae", also=ALSO),
    # With the default of 0.05 the error of reconstructions is half as large again.
    Run(
        name="pm",
        label="ours",
        method="pm",
        also=ALSO,
        overrides={"method_args.omega1": 0.015, "method_args.omega2": 0.015},
    ),
    Run(name="wae_mmd", label="WAE-MMD", method="wae_mmd"),
    Run(name="wae_gan", label="WAE-GAN", method="wae_gan"),
    Run(
        name="introvae",
        label="IntroVAE",
        method="introvae",
        overrides={"method_args.kl_weight": WEIGHT, "method_args.margin": 10.0},
    ),
    Run(name="age", label="AGE", method="age", overrides=SPHERE),
    Run(name="acai", label="ACAI", method="acai"),
    Run(name="mi_ae", label="MI-AE", method="mi_ae"),
    Run(
        name="infovae",
        label="InfoVAE",
        method="infovae",
        overrides={"method_args.alpha": 1 - WEIGHT, "method_args.lambda_": 0.2},
    ),
    Run(
        name="vae_gan",
        label="VAE-GAN",
        method="vae_gan",
        overrides={"method_args.kl_weight": WEIGHT},
    ),
    Run(name="vq_vae", label="VQ-VAE", method="vq_vae"),
    Run(
        name="s_vae",
        label="S-VAE",
        method="s_vae",
        overrides=SPHERE | {"method_args.beta": WEIGHT},
    ),
    Run(name="sae", label="SAE", method="sae", overrides=SPHERE | {"latent_dim": 4}),
    Run(name="ae", label="AE", method="ae", prior="gmm", also=("flow_matching", "latent_gan")),
    Run(name="rae", label="RAE", method="rae"),
)
COLUMNS = (
    Column(title="MSE", key="recon/mse"),
    Column(title="W₂ samples", key="w2/{prior}"),
    Column(title="W₂ floor", key="w2/floor"),
    Column(title="W₂ / floor", key="w2/{prior}", over="w2/floor"),
    Column(title="off the roll", key="swiss_roll/off/{prior}"),
    Column(title="energy / floor", key="energy/{prior}", over="energy/train"),
    Column(title="trustworthiness", key="topology/trustworthiness"),
    Column(title="continuity", key="topology/continuity"),
)
NOTE = (
    "W₂: 2-Wasserstein distance of 2000 samples from fresh points; the floor is that of other "
    "fresh points, so 1 is perfect for their ratio, as it is for trustworthiness and continuity "
    "of the embedding. Off the roll: the share of samples farther from the roll than 99 in 100 "
    "test points, 0.01 for perfect ones. Energy: the energy distance of latents from embeddings of "
    "test points (of variational methods, the posteriors' means), over that of training points. "
    "All latents have two dimensions: those of AGE, S-VAE and SAE, which lie on a sphere, in "
    "three coordinates, or four where these are centred (SAE)."
)
POINTS = 2000
QUICK = ("reconstruction", "topology", "swiss_roll")  # the exact W₂ takes its time


def results(study: Study) -> Iterator[Table | Figure]:
    """Yields the table, then manifolds (Figure 4) and latents (Figure 5)."""
    yield study.table("Generation and topology", COLUMNS, NOTE)
    manifolds, latents, box = [], [], None
    for run in trained(study):
        x = run.test[:POINTS]
        colour, z = unroll(x)[0], run.model.encode(x)
        drawn = run.model.sample_latent(len(x), seed=run.seed)
        made = run.model.decode(drawn)
        # New points have no place along the roll of their own: each takes its nearest test point's.
        place = colour[cKDTree(x).query(made)[1]]
        base = run.model.sample_base(len(x), seed=run.seed)
        box = cube(x) if box is None else box
        panels = [
            Scatter("input", x, colour),
            Scatter("reconstruction", run.model.reconstruct(x), colour),
            Scatter("generation", made, place),
        ]
        manifolds.append((run.label, panels))
        at = colour[cKDTree(z).query(drawn)[1]]
        maps = base is not None and base.shape[1] == 2
        between = Scatter("prior z'", base, at) if maps else None
        name = "generated latent" if maps else f"prior {run.model.prior}"
        if z.shape[1] > 3:  # SAE's centred coordinates lie in three directions
            directions = np.linalg.svd(z, full_matrices=False)[2][:3].T
            z, drawn = z @ directions, drawn @ directions
        same = cube(np.concatenate([z, drawn]))
        panels = [Scatter("embedding", z, colour, limits=same), between]
        latents.append((run.label, [*panels, Scatter(name, drawn, at, limits=same)]))
    if manifolds:
        yield scatter_rows(
            study.figures / "manifolds.png",
            "Manifolds",
            "Test points, their reconstructions, and new points by each method's own prior, all in "
            "the same axes, beyond which nothing is drawn, and coloured along the roll; the "
            "paper's Figure 4.",
            manifolds,
            limits=np.asarray(box) * 1.15,
        )
        yield scatter_rows(
            study.figures / "latents.png",
            "Latents",
            "Embeddings of test points; where the prior is mapped, its draws, coloured by where "
            "they go; and the latents that samples are made of. The paper's Figure 5.",
            latents,
        )


REPRODUCTION = Reproduction(
    title="The swiss roll: the paper's Figures 4 and 5",
    results=results,
    config="swiss_roll.py",
    runs=RUNS,
    overrides={
        "eval.metrics": (*QUICK, "energy", "wasserstein"),
        "eval.args.wasserstein.draws": 20,  # one draw's ratio has a standard deviation of 0.1
    },
    runlocal={"nets_args.width": 32, "eval.baselines": (), "eval.metrics": QUICK},
)
