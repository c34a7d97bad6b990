"""Draws samples, reconstructions, interpolations, latents and manifolds of a model."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree

from pmjax.datasets.batches import to_uint8
from pmjax.evals.context import Context
from pmjax.reporting import plots
from pmjax.reporting.images import Figure, grid, save_png
from pmjax.reporting.plots import BLUE, GRAY

SAMPLES, PAIRS, PAIRS_A_ROW, LINES, STEPS = 64, 32, 8, 8, 9
POINTS = 2000  # at most, in a scatter plot
Projection = Callable[[np.ndarray], np.ndarray]
Panel = tuple[str, np.ndarray, np.ndarray]  # name, points [N, 2 or 3], values of their colors


def draw(ctx: Context, workdir: Path) -> list[Figure]:
    """Draws the figures that fit the data of an evaluation context into workdir/figures/.

    Images get grids and a scatter of the latents; points get the analogues of the paper's
    Figures 4 (manifolds) and 5 (latents). Without test examples, their figures are left out; with
    a single one, interpolations are.
    """
    folder = workdir / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    if ctx.test.data.ndim == 4:
        return list(_image_figures(ctx, folder))
    return list(_point_figures(ctx, folder)) if len(ctx.test.data) else []


def _image_figures(ctx: Context, folder: Path) -> Iterator[Figure]:
    rng = np.random.default_rng(ctx.seed)
    for prior in ctx.priors:
        own = prior == ctx.priors[0]
        whose = "the run's own prior" if own else f"prior {prior}, fitted to the same embeddings"
        yield _save(
            grid(ctx.samples(prior)[:SAMPLES]),
            folder / f"samples_{prior}.png",
            f"Samples, prior {prior}",
            f"New images: G of latents drawn from {whose}; the first {SAMPLES}, without selection.",
        )
    data = ctx.test.data
    if len(data):
        chosen = np.sort(rng.choice(len(data), min(PAIRS, len(data)), replace=False))
        pairs = [data[chosen], to_uint8(ctx.reconstructions("test", chosen))]
        yield _save(
            grid(np.concatenate(pairs, axis=1), columns=PAIRS_A_ROW),
            folder / "reconstructions.png",
            "Reconstructions",
            "Test images, each above its reconstruction G(E(x)).",
        )
    if len(data) > 1:
        ends = rng.choice(len(data), (2, min(LINES, len(data) // 2)), replace=False)
        between = ctx.model.interpolate(data[ends[0]], data[ends[1]], steps=STEPS)
        yield _save(
            grid(to_uint8(between.reshape(-1, *data.shape[1:])), columns=STEPS),
            folder / "interpolations.png",
            "Interpolations",
            "Each row is a straight line in latent space, from the reconstruction of one test "
            "image to that of another.",
        )
    if len(data):
        yield _latent_scatter(ctx, folder)
    yield _moments(ctx, folder)


def _point_figures(ctx: Context, folder: Path) -> Iterator[Figure]:
    data, color, codes, rows = _selected(ctx)
    shown: Projection = (lambda x: x) if data.shape[1] == 3 else _plane(data)
    tree = cKDTree(data)

    def new_points(name: str, prior: str) -> Panel:
        # New points have no coordinate along the data; each gets that of the nearest test point.
        points = ctx.samples(prior)[:POINTS]
        return name, shown(points), color[tree.query(points)[1]]

    yield _scatters(
        [
            ("input", shown(data), color),
            ("reconstruction", shown(ctx.reconstructions("test", rows)), color),
            new_points("generation", ctx.priors[0]),
        ],
        folder / "manifolds.png",
        "Manifolds",
        "Test points, their reconstructions and new points from the run's own prior, colored "
        "along the data (new points as the nearest test point); the paper's Figure 4.",
    )
    if len(ctx.priors) > 1:
        yield _scatters(
            [new_points(prior, prior) for prior in ctx.priors[1:]],
            folder / "manifolds_other_priors.png",
            "Generation with other priors",
            "New points from priors fitted to the same embeddings.",
        )
    latent = ctx.model.sample_latent(len(codes), seed=ctx.seed)
    base = ctx.model.sample_base(len(codes), seed=ctx.seed)
    flat = _plane(codes)
    reached = color[cKDTree(codes).query(latent)[1]]
    between = [] if base is None else [("base prior", _plane(base)(base), reached)]
    yield _scatters(
        [("embedding", flat(codes), color), *between, ("generated latent", flat(latent), reached)],
        folder / "latents.png",
        "Latents",
        "Embeddings of the test points, draws of the base prior colored by the latents that they "
        "become, and these latents; the paper's Figure 5."
        if between
        else "Embeddings of the test points and draws of the prior; the paper's Figure 5.",
        apart="base prior",
    )


def _latent_scatter(ctx: Context, folder: Path) -> Figure:
    _, labels, codes, _ = _selected(ctx)
    flat = _plane(codes)
    codes = flat(codes)
    columns = max(3, 1 + len(ctx.priors))
    canvas = plots.canvas(11.7, 11.7 / columns + 0.3)
    axes = canvas.subplots(1, columns, sharex=True, sharey=True)
    for axis in axes[1 + len(ctx.priors) :]:
        axis.remove()
    axes = axes[: 1 + len(ctx.priors)]
    names = np.unique(labels)
    if len(names) <= 20:
        colors = plots.class_colors(len(names))
        for name, one in zip(names, colors, strict=False):
            axes[0].scatter(*codes[labels == name].T, s=4, color=one, lw=0, label=f"{name:g}")
        if len(names) > 1:
            axes[0].legend(
                markerscale=3,
                handletextpad=0,
                borderpad=0.2,
                labelspacing=0.2,
                fontsize=8,
                loc="upper right",
                framealpha=0.85,
            )
    else:
        axes[0].scatter(*codes.T, s=4, c=labels, cmap="viridis", lw=0)
    axes[0].set_title("embeddings", fontsize=11)
    for axis, prior in zip(axes[1:], ctx.priors, strict=True):
        drawn = ctx.model.sample_latent(len(codes), seed=ctx.seed, prior=prior)
        axis.scatter(*codes.T, s=4, color=GRAY, lw=0)
        axis.scatter(*flat(drawn).T, s=4, color=BLUE, lw=0)
        axis.set_title(prior, fontsize=11, parse_math=False)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return plots.save(
        canvas,
        folder / "latents.png",
        "Latents",
        "The two directions in which embeddings of test images vary most (PCA): colored by class, "
        "then in gray under latents drawn from each prior.",
    )


def _moments(ctx: Context, folder: Path) -> Figure:
    z = ctx.embeddings("train").astype(np.float64)
    mean, deviation, coordinates = z.mean(0), z.std(0), np.arange(z.shape[1])
    y = (z - mean) / np.where(deviation > 0, deviation, 1)
    correlation = y.T @ y / len(z)
    canvas = plots.canvas(11.7, 3.3)
    axes = canvas.subplots(1, 3, width_ratios=(4, 4, 3))
    for axis, values, ideal, name in (
        (axes[0], mean, 0, "mean"),
        (axes[1], deviation**2, 1, "variance"),
    ):
        axis.axhline(ideal, color=GRAY, lw=1)
        axis.vlines(coordinates, ideal, values, color=BLUE, lw=0.8)
        axis.plot(coordinates, values, ".", color=BLUE, ms=4)
        axis.set_title(f"{name} of each coordinate", fontsize=11)
        axis.tick_params(labelsize=7)
    shown = axes[2].imshow(correlation, vmin=-1, vmax=1, cmap="RdBu", interpolation="nearest")
    axes[2].set_title("correlations", fontsize=11)
    axes[2].set(xticks=[], yticks=[])
    canvas.colorbar(shown, ax=axes[2]).ax.tick_params(labelsize=7)
    return plots.save(
        canvas,
        folder / "moments.png",
        "Moments of the embedding",
        "Over the training images: the coordinates' means and variances, 0 and 1 after the latent "
        "BatchNorm, and their correlations.",
    )


def _selected(ctx: Context) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the data, labels, embeddings and rows of at most POINTS random test examples."""
    num = len(ctx.test.data)
    rows = np.arange(num)
    if num > POINTS:
        rows = np.sort(np.random.default_rng(ctx.seed).choice(num, POINTS, replace=False))
    labels = np.zeros(num) if ctx.test.labels is None else ctx.test.labels
    return ctx.test.data[rows], labels[rows], np.asarray(ctx.embeddings("test"))[rows], rows


def _plane(codes: np.ndarray) -> Projection:
    """Returns the projection to two dimensions: PCA, or the identity if the codes have two."""
    dim = codes.shape[1]
    if dim <= 2:
        return lambda x: np.pad(x, ((0, 0), (0, 2 - dim)))
    mean = codes.mean(0)
    # A single example has no direction: any two serve.
    directions = np.linalg.svd(codes - mean, full_matrices=len(codes) < 2)[2][:2]
    return lambda x: (x - mean) @ directions.T


def _scatters(panels: list[Panel], path: Path, title: str, caption: str, apart: str = "") -> Figure:
    """Draws panels side by side with the same limits, except the one called `apart`."""
    common = np.concatenate([points for name, points, _ in panels if name != apart])
    limits = plots.cube(common, drop=0)
    scatters = [
        plots.Scatter(name, points, color, limits=None if name == apart else limits)
        for name, points, color in panels
    ]
    columns = max(3, len(scatters))
    return plots.scatter_rows(path, title, caption, [("", scatters)], columns=columns, inches=3.9)


def _save(image: np.ndarray, path: Path, title: str, caption: str) -> Figure:
    save_png(path, image)
    return Figure(title, caption, path)
