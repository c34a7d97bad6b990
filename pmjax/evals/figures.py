"""Draws what a run learned: samples, reconstructions, interpolations, latents, manifolds, losses.

The only import of matplotlib, without a display (Agg and SVG).
"""

import io
import re
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter
from scipy.spatial import cKDTree

from pmjax.datasets.batches import to_uint8
from pmjax.reporting.report import Figure, grid, save_png

SAMPLES, PAIRS, PAIRS_A_ROW, LINES, STEPS = 64, 32, 8, 8, 9
POINTS = 2000  # shown at most in a scatter
BLUE, GREY = "#3f6fd8", "#b9bec8"
INK = "#010203"  # stands for the page's own text colour in the SVGs


def draw(ctx, workdir) -> list[Figure]:
    """Draws the figures that fit the data of an evaluation context into workdir/figures/.

    Images get grids and a scatter of the latents; points get the analogues of the paper's
    Figures 4 (manifolds) and 5 (latents).
    """
    folder = Path(workdir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    steps = _image_figures if ctx.test.data.ndim == 4 else _point_figures
    return list(steps(ctx, folder))


def _image_figures(ctx, folder):
    rng = np.random.default_rng(ctx.seed)
    for prior in ctx.priors:
        own = prior == ctx.priors[0]
        whose = "the run's own prior" if own else f"prior {prior}, fitted to the same embeddings"
        yield _save(
            grid(ctx.samples(prior)[:SAMPLES]),
            folder / f"samples_{prior}.png",
            f"Samples, prior {prior}",
            f"New images: G of latents drawn from {whose}; the first {SAMPLES}, not selected.",
        )
    data = ctx.test.data
    chosen = np.sort(rng.choice(len(data), min(PAIRS, len(data)), replace=False))
    pairs = np.concatenate([data[chosen], to_uint8(ctx.reconstructions("test", chosen))], axis=1)
    yield _save(
        grid(pairs, columns=PAIRS_A_ROW),
        folder / "reconstructions.png",
        "Reconstructions",
        "Test images, each above its reconstruction G(E(x)).",
    )
    ends = rng.choice(len(data), (2, min(LINES, len(data) // 2)), replace=False)
    between = ctx.model.interpolate(data[ends[0]], data[ends[1]], steps=STEPS)
    yield _save(
        grid(to_uint8(between.reshape(-1, *data.shape[1:])), columns=STEPS),
        folder / "interpolations.png",
        "Interpolations",
        "Each row walks in a straight line through latent space from the reconstruction of one "
        "test image to that of another.",
    )
    yield _latent_scatter(ctx, folder)
    yield _moments(ctx, folder)


def _point_figures(ctx, folder):
    data, colour, codes, show = _shown(ctx)
    solid = (lambda x: x) if data.shape[1] == 3 else _plane(data)
    tree = cKDTree(data)

    def new_points(name, prior):
        # They have no coordinate along the data of their own: each takes its nearest test point's.
        made = ctx.samples(prior)[:POINTS]
        return name, solid(made), colour[tree.query(made)[1]]

    yield _scatters(
        [
            ("input", solid(data), colour),
            ("reconstruction", solid(ctx.reconstructions("test", show)), colour),
            new_points("generation", ctx.priors[0]),
        ],
        folder / "manifolds.png",
        "Manifolds",
        "Test points, their reconstructions and new points from the run's own prior, coloured "
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
    reached = colour[cKDTree(codes).query(latent)[1]]
    between = [] if base is None else [("base prior", _plane(base)(base), reached)]
    yield _scatters(
        [("embedding", flat(codes), colour), *between, ("generated latent", flat(latent), reached)],
        folder / "latents.png",
        "Latents",
        "Embeddings of the test points, draws of the base prior coloured by where they go, and "
        "the latents made of them; the paper's Figure 5."
        if between
        else "Embeddings of the test points and draws of the prior; the paper's Figure 5.",
        apart="base prior",
    )


def _latent_scatter(ctx, folder):
    _, labels, codes, _ = _shown(ctx)
    flat = _plane(codes)
    codes = flat(codes)
    columns = max(3, 1 + len(ctx.priors))
    canvas = Canvas(figsize=(11.7, 11.7 / columns + 0.3), layout="constrained")
    axes = canvas.subplots(1, columns, sharex=True, sharey=True)
    for axis in axes[1 + len(ctx.priors) :]:
        axis.remove()
    axes = axes[: 1 + len(ctx.priors)]
    names = np.unique(labels)
    if len(names) <= 20:
        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors
        for name, one in zip(names, colours, strict=False):
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
        axis.scatter(*codes.T, s=4, color=GREY, lw=0)
        axis.scatter(*flat(drawn).T, s=4, color=BLUE, lw=0)
        axis.set_title(prior, fontsize=11, parse_math=False)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    return _png(
        canvas,
        folder / "latents.png",
        "Latents",
        "The two directions in which embeddings of test images vary most (PCA): coloured by class, "
        "then in grey under latents drawn from each prior.",
    )


def _moments(ctx, folder):
    z = ctx.embeddings("train").astype(np.float64)
    mean, deviation, coordinates = z.mean(0), z.std(0), np.arange(z.shape[1])
    correlation = np.cov(z.T).reshape(2 * [len(mean)]) / np.outer(deviation, deviation).clip(1e-12)
    canvas = Canvas(figsize=(11.7, 3.3), layout="constrained")
    axes = canvas.subplots(1, 3, width_ratios=(4, 4, 3))
    for axis, values, ideal, name in (
        (axes[0], mean, 0, "mean"),
        (axes[1], deviation**2, 1, "variance"),
    ):
        axis.axhline(ideal, color=GREY, lw=1)
        axis.vlines(coordinates, ideal, values, color=BLUE, lw=0.8)
        axis.plot(coordinates, values, ".", color=BLUE, ms=4)
        axis.set_title(f"{name} of each coordinate", fontsize=11)
        axis.tick_params(labelsize=7)
    shown = axes[2].imshow(correlation, vmin=-1, vmax=1, cmap="RdBu", interpolation="nearest")
    axes[2].set_title("correlations", fontsize=11)
    axes[2].set(xticks=[], yticks=[])
    canvas.colorbar(shown, ax=axes[2]).ax.tick_params(labelsize=7)
    return _png(
        canvas,
        folder / "moments.png",
        "Moments of the embedding",
        "Over the training images: the coordinates' means and variances, 0 and 1 behind the latent "
        "BatchNorm, and their correlations.",
    )


def _shown(ctx):
    """Picks at most POINTS test examples: data, labels, embeddings, indices."""
    num = len(ctx.test.data)
    show = np.arange(num)
    if num > POINTS:
        show = np.sort(np.random.default_rng(ctx.seed).choice(num, POINTS, replace=False))
    labels = np.zeros(num) if ctx.test.labels is None else ctx.test.labels
    return ctx.test.data[show], labels[show], np.asarray(ctx.embeddings("test"))[show], show


def _plane(codes):
    """Returns the projection to two dimensions: PCA of the codes, or as is if they have two."""
    dim = codes.shape[1]
    if dim <= 2:
        return lambda x: np.pad(x, ((0, 0), (0, 2 - dim)))
    mean = codes.mean(0)
    directions = np.linalg.svd(codes - mean, full_matrices=False)[2][:2]
    return lambda x: (x - mean) @ directions.T


def _scatters(panels, path, title, caption, apart=None):
    """Draws panels (name, points [N, 2 or 3], values) side by side, on the same axes.

    The panel called `apart` lies in another space and has axes of its own.
    """
    common = np.concatenate([points for name, points, _ in panels if name != apart])
    solid = common.shape[1] == 3
    columns = max(3, len(panels))
    canvas = Canvas(figsize=(3.9 * columns, 3.6 if solid else 4.1), layout="constrained")
    for i, (name, points, colour) in enumerate(panels):
        axis = canvas.add_subplot(1, columns, i + 1, projection="3d" if solid else None)
        axis.scatter(*points.T, s=5, lw=0, c=colour, cmap="turbo")
        limits = _cube(points if name == apart else common)
        axis.set(**dict(zip(("xlim", "ylim", "zlim"), limits, strict=False)))
        axis.set_title(name, fontsize=11, parse_math=False)
        axis.tick_params(labelsize=7)
        axis.locator_params(nbins=5)
        if solid:
            axis.view_init(elev=12, azim=-72)
            axis.set_box_aspect((1, 1, 1), zoom=1.1)
        else:
            axis.set_box_aspect(1)
    return _png(canvas, path, title, caption)


def _cube(points):
    """Returns limits [D, 2] of the same length in all dimensions."""
    low, high = points.min(0), points.max(0)
    half = 0.53 * (high - low).max() + 1e-6
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half], axis=1)


def _save(image, path, title, caption):
    save_png(path, image)
    return Figure(title, caption, path)


def _png(canvas, path, title, caption):
    FigureCanvasAgg(canvas)
    canvas.savefig(path, dpi=130, facecolor="white", metadata={"Software": None})
    return Figure(title, caption, path)


def curves(rows: list[dict]) -> list[tuple[str, str]]:
    """Returns (stage, SVG) from the rows of history.jsonl: a panel a value, in the page's colours.

    Each shows the range (pale) and the moving average; positive values that span more than a
    factor 20 get a logarithmic axis.
    """
    stages: dict[str, dict[str, list]] = {}
    for row in rows:
        values = stages.setdefault(row["stage"], {})
        for name, value in row["values"].items():
            if value is not None:
                values.setdefault(name, []).append((row["step"], value))
    return [(stage, _curves_svg(values)) for stage, values in stages.items() if values]


def _curves_svg(values):
    height = -(-len(values) // 3)
    style = {
        "svg.fonttype": "none",
        "svg.hashsalt": "pmjax",
        "text.color": INK,
        "axes.edgecolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
        "font.size": 8,
        "font.family": "DejaVu Sans",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.5,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(10.5, 2.1 * height), layout="constrained")
        axes = canvas.subplots(height, 3, squeeze=False).ravel()
        losses_first = sorted(values, key=lambda name: not name.startswith("loss/"))
        for axis, name in zip(axes, losses_first, strict=False):
            _curve(axis, name, *np.asarray(values[name], float).T)
        for axis in axes[len(values) :]:
            axis.remove()
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :], count=2)
    return svg.replace(INK, "currentColor")


def _curve(axis, name, steps, values):
    bins = np.array_split(np.arange(len(steps)), min(len(steps), 200))
    middle = np.array([steps[b].mean() for b in bins])
    low, mean, high = (np.array([f(values[b]) for b in bins]) for f in (np.min, np.mean, np.max))
    width = max(1, len(bins) // 25)
    smooth = np.convolve(mean, np.ones(width), "same") / np.convolve(
        np.ones(len(mean)), np.ones(width), "same"
    )
    axis.plot(middle, mean, color=BLUE, alpha=0.35, lw=0.6)
    axis.fill_between(middle, low, high, color=BLUE, alpha=0.18, lw=0)
    axis.plot(middle, smooth, color=BLUE, lw=1.4)
    if values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(name, fontsize=9, loc="left", parse_math=False)
    axis.margins(x=0.01)
    axis.grid(color=INK, alpha=0.12, lw=0.5)
