"""Figures 4 and 5: the swiss roll with two latent coordinates, by every method.

    python -m pmjax.reproduce swiss_roll --workdir=runs/reproduce/swiss_roll

17 runs for each of three seeds, one to ten minutes each on a CPU core.
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
# The default weights of the KL divergence are for images. Here the variance of a coordinate is
# about 0.2, below the 0.5 of their p(x|z), so that posteriors would collapse (Proposition 1; see
# `theory`). This weight corresponds to a p(x|z) with a standard deviation of 0.1.
WEIGHT = 0.02
# A sphere in three coordinates has two dimensions; SAE centers its coordinates, which costs one.
SPHERE = {"latent_dim": 3}
RUNS = (
    Run(name="vae", label="VAE", also=ALSO, overrides={"method_args.variance": WEIGHT / 2}),
    Run(name="aae", label="AAE", also=ALSO),
    Run(name="alae", label="ALAE", also=ALSO),
    # With the default of 0.05, the reconstruction error is 1.5 times as large.
    Run(
        name="pm",
        label="ours",
        also=ALSO,
        overrides={"method_args.omega1": 0.015, "method_args.omega2": 0.015},
    ),
    Run(name="wae_mmd", label="WAE-MMD"),
    Run(name="wae_gan", label="WAE-GAN"),
    Run(
        name="introvae",
        label="IntroVAE",
        overrides={"method_args.kl_weight": WEIGHT, "method_args.margin": 10.0},
    ),
    Run(name="age", label="AGE", overrides=SPHERE),
    Run(name="acai", label="ACAI"),
    Run(name="mi_ae", label="MI-AE"),
    Run(
        name="infovae",
        label="InfoVAE",
        overrides={"method_args.alpha": 1 - WEIGHT, "method_args.lambda_": 0.2},
    ),
    Run(name="vae_gan", label="VAE-GAN", overrides={"method_args.kl_weight": WEIGHT}),
    Run(name="vq_vae", label="VQ-VAE"),
    Run(name="s_vae", label="S-VAE", overrides=SPHERE | {"method_args.beta": WEIGHT}),
    Run(name="sae", label="SAE", overrides=SPHERE | {"latent_dim": 4}),
    Run(name="ae", label="AE", prior="gmm", also=("flow_matching", "latent_gan")),
    Run(name="rae", label="RAE"),
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
    "W₂: 2-Wasserstein distance between 2000 samples and fresh points; the floor is that between "
    "fresh points, so the perfect ratio is 1. Trustworthiness and continuity of the embedding: 1 "
    "is perfect. Off the roll: share of samples farther from the roll than 99 of 100 test points; "
    "0.01 is perfect. Energy: energy distance between latents and embeddings of test points (for "
    "variational methods, the posterior means), divided by that of training points. All latents "
    "have two dimensions; on the spheres of AGE, S-VAE and SAE, these take three coordinates, or "
    "four where they are centered (SAE)."
)
POINTS = 2000
QUICK = ("reconstruction", "topology", "swiss_roll")  # without the exact W₂, which is slow


def results(study: Study) -> Iterator[Table | Figure]:
    """Yields the table, then manifolds (Figure 4) and latents (Figure 5)."""
    yield study.table("Generation and topology", COLUMNS, NOTE)
    manifolds: list[tuple[str, list[Scatter | None]]] = []
    latents: list[tuple[str, list[Scatter | None]]] = []
    box = None
    for run in trained(study):
        x = run.test[:POINTS]
        color, z = unroll(x)[0], run.model.encode(x)
        drawn = run.model.sample_latent(len(x), seed=run.seed)
        made = run.model.decode(drawn)
        base = run.model.sample_base(len(x), seed=run.seed)
        box = cube(x) if box is None else box
        # A generated point takes the color of the nearest test point.
        generation = Scatter("generation", made, color[cKDTree(x).query(made)[1]])
        reconstruction = Scatter("reconstruction", run.model.reconstruct(x), color)
        manifolds.append((run.label, [Scatter("input", x, color), reconstruction, generation]))
        at = color[cKDTree(z).query(drawn)[1]]
        between, name = None, f"prior {run.model.prior}"
        if base is not None and base.shape[1] == 2:
            between, name = Scatter("prior z'", base, at), "generated latent"
        if z.shape[1] > 3:  # SAE's centered coordinates span three directions
            directions = np.linalg.svd(z, full_matrices=False)[2][:3].T
            z, drawn = z @ directions, drawn @ directions
        same = cube(np.concatenate([z, drawn]))
        embedding = Scatter("embedding", z, color, limits=same)
        latents.append((run.label, [embedding, between, Scatter(name, drawn, at, limits=same)]))
    if manifolds:
        yield scatter_rows(
            study.figures / "manifolds.png",
            "Manifolds",
            "Test points, their reconstructions, and samples of each method's own prior, colored "
            "along the roll. All panels have the same axes; points outside are not drawn. The "
            "paper's Figure 4.",
            manifolds,
            limits=np.asarray(box) * 1.15,
        )
        yield scatter_rows(
            study.figures / "latents.png",
            "Latents",
            "Embeddings of test points; draws of the base prior where there is one, colored by "
            "their destination; and the latents of the samples. The paper's Figure 5.",
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
