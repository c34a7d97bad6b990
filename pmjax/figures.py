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
from scipy.spatial import cKDTree

from pmjax.datasets import to_uint8
from pmjax.report import Figure, grid, save_png

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
        yield _save(
            grid(ctx.samples(prior)[:SAMPLES]),
            folder / f"samples_{prior}.png",
            f"Samples, prior {prior}",
            f"New images: G of {SAMPLES} latents drawn from {_whose(ctx, prior)}; not selected.",
        )
    data = ctx.test.data
    chosen = np.sort(rng.choice(len(data), min(PAIRS, len(data)), replace=False))
    pairs = np.concatenate([data[chosen], to_uint8(ctx.reconstructions("test")[chosen])], axis=1)
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


def _point_figures(ctx, folder):
    data, colour, codes, show = _shown(ctx)
    tree = cKDTree(data)
    made = {p: np.asarray(ctx.samples(p))[:POINTS] for p in ctx.priors}
    own = ctx.priors[0]
    # A new point has no roll coordinate of its own: it takes that of the nearest real one.
    panels = [
        ("input", data, colour),
        ("reconstruction", np.asarray(ctx.reconstructions("test"))[show], colour),
        ("generation", made[own], colour[tree.query(made[own])[1]]),
    ]
    yield _scatters(
        panels,
        folder / "manifolds.png",
        "Manifolds",
        "Test points, their reconstructions and new points from the run's own prior, coloured "
        "along the data (new points as the nearest test point); the paper's Figure 4.",
    )
    if len(ctx.priors) > 1:
        yield _scatters(
            [(p, made[p], colour[tree.query(made[p])[1]]) for p in ctx.priors[1:]],
            folder / "manifolds_other_priors.png",
            "Generation with other priors",
            "New points from priors fitted to the same embeddings.",
        )
    latent = ctx.model.sample_latent(len(codes), seed=ctx.seed)
    base = ctx.model.sample_base(len(codes), seed=ctx.seed)
    flat = _plane(codes)
    panels = [("embedding", flat(codes), colour)]
    if base is not None:
        panels += [("base prior", _plane(base)(base), BLUE)]
    panels += [("generated latent", flat(latent), colour[cKDTree(codes).query(latent)[1]])]
    yield _scatters(
        panels,
        folder / "latents.png",
        "Latents",
        "Embeddings of the test points, draws of the base prior, and the latents made of them, "
        "coloured along the data; the paper's Figure 5."
        if base is not None
        else "Embeddings of the test points, and latents drawn from the prior, coloured along "
        "the data; the paper's Figure 5.",
    )


def _latent_scatter(ctx, folder):
    _, labels, codes, _ = _shown(ctx)
    flat = _plane(codes)
    codes = flat(codes)
    canvas = Canvas(figsize=(3.6 * (1 + len(ctx.priors)), 3.9), layout="constrained")
    axes = canvas.subplots(1, 1 + len(ctx.priors), sharex=True, sharey=True, squeeze=False)[0]
    names = np.unique(labels)
    if len(names) <= 20:
        colours = matplotlib.colormaps["tab10" if len(names) <= 10 else "tab20"].colors
        for name, one in zip(names, colours, strict=False):
            axes[0].scatter(*codes[labels == name].T, s=4, color=one, lw=0, label=f"{name:g}")
        if len(names) > 1:
            axes[0].legend(
                markerscale=3, handletextpad=0, borderpad=0.2, labelspacing=0.2, fontsize=8,
                loc="upper right", framealpha=0.85,
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
        "The two directions in which the embeddings of test images vary most (PCA): by class, and "
        "in grey under latents drawn from each prior.",
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


def _scatters(panels, path, title, caption):
    """Draws panels (name, points [N,D], colours) side by side, in 3-D for D = 3."""
    solid = panels[0][1].shape[1] == 3
    canvas = Canvas(figsize=(3.9 * len(panels), 4.0), layout="constrained")
    for i, (name, points, colour) in enumerate(panels):
        axis = canvas.add_subplot(1, len(panels), i + 1, projection="3d" if solid else None)
        paint = {"color": colour} if isinstance(colour, str) else {"c": colour, "cmap": "Spectral"}
        points = points if solid else _plane(points)(points)
        axis.scatter(*points.T, s=5, lw=0, **paint)
        axis.set_title(name, fontsize=11, parse_math=False)
        axis.tick_params(labelsize=7)
        if solid:
            axis.view_init(elev=10, azim=-75)
            axis.set_box_aspect((1, 1, 1))
        else:
            axis.set_aspect("equal", adjustable="datalim")
    return _png(canvas, path, title, caption)


def _whose(ctx, prior):
    return "the run's own prior" if prior == ctx.priors[0] else f"a {prior} fitted to the embeddings"


def _save(image, path, title, caption):
    save_png(path, image)
    return Figure(title, caption, path)


def _png(canvas, path, title, caption):
    FigureCanvasAgg(canvas)
    canvas.savefig(path, dpi=100, facecolor="white", metadata={"Software": None})
    return Figure(title, caption, path)


def curves(rows: list[dict]) -> list[tuple[str, str]]:
    """Returns (stage, SVG) from the rows of history.jsonl: a panel a value, in the page's colours.

    Each shows the range (pale) and the moving average; positive values that span more than a
    factor 20 get a logarithmic axis.
    """
    series: dict[str, dict[str, list]] = {}
    for row in rows:
        for name, value in row["values"].items():
            if value is not None:
                series.setdefault(row["stage"], {}).setdefault(name, []).append((row["step"], value))
    return [(stage, _curves_svg(values)) for stage, values in series.items()]


def _curves_svg(values):
    height = -(-len(values) // 3)
    style = {
        "svg.fonttype": "none", "svg.hashsalt": "pmjax", "text.color": INK,
        "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "font.size": 8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.5,
    }
    with matplotlib.rc_context(style):
        canvas = Canvas(figsize=(10.5, 2.1 * height), layout="constrained")
        axes = canvas.subplots(height, 3, squeeze=False).ravel()
        for axis, (name, points) in zip(axes, values.items(), strict=False):
            _curve(axis, name, *np.asarray(points, float).T)
        for axis in axes[len(values) :]:
            axis.remove()
        out = io.StringIO()
        canvas.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", out.getvalue(), flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :], count=2)
    return svg.replace(INK, "currentColor")


def _curve(axis, name, steps, values):
    bins = np.array_split(np.arange(len(steps)), min(len(steps), 300))
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
    axis.set_title(name, fontsize=9, loc="left", parse_math=False)
    axis.margins(x=0.01)
    axis.grid(color=INK, alpha=0.12, lw=0.5)
