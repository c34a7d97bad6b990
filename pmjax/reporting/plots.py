"""Plots: scatters and rows of pictures as PNG, curves as SVG. The only import of matplotlib.

Import it inside the function that draws: matplotlib takes half a second to load.
"""

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullFormatter

from pmjax.reporting.images import Figure

DPI = 130
BLUE, GRAY = "#3f6fd8", "#b9bec8"
INK = "#010203"  # replaced by the page's own text color in SVGs


def canvas(width: float, height: float) -> Canvas:
    """Returns an empty figure; sizes in inches."""
    return Canvas(figsize=(width, height), layout="constrained")


def save(canvas: Canvas, path: Path, title: str, caption: str, *, tight: bool = False) -> Figure:
    """Writes a PNG; `tight` fits its size to what is drawn."""
    FigureCanvasAgg(canvas)
    crop: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.1} if tight else {}
    canvas.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None}, **crop)
    return Figure(title, caption, path)


def class_colors(num: int) -> Sequence[Any]:
    """Returns a color for each of up to 20 classes."""
    colormap: Any = matplotlib.colormaps["tab10" if num <= 10 else "tab20"]
    return colormap.colors


class Scatter(NamedTuple):
    """A panel: points [N, 2 or 3] and their colors, over `under` in gray.

    `limits` [D, 2] are those of its axes.
    """

    title: str
    points: np.ndarray
    color: np.ndarray | str
    under: np.ndarray | None = None
    limits: np.ndarray | None = None


def scatter_rows(
    path: Path,
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Sequence[Scatter | None]]],
    *,
    limits: np.ndarray | None = None,
    columns: int = 0,
    inches: float = 2.7,
) -> Figure:
    """Draws rows of scatters: a label ('': none) and panels, of which None leaves one empty.

    `limits` [D, 2] are those of all axes (None: each panel has its own); points outside are left
    out. There are as many `columns` as the longest row has (0), each `inches` wide.
    """
    columns = columns or max(len(panels) for _, panels in rows)
    labeled = any(label for label, _ in rows)
    figure = canvas(inches * columns + 1.2 * labeled, inches * len(rows))
    for i, (label, panels) in enumerate(rows):
        for j, panel in enumerate(panels):
            if panel is None:
                continue
            solid = panel.points.shape[1] == 3
            axis: Any = figure.add_subplot(
                len(rows), columns, i * columns + j + 1, projection="3d" if solid else None
            )
            _scatter(axis, panel, limits)
            if j == 0 and label:
                text = axis.text2D if solid else axis.text
                text(-0.28, 0.5, label, transform=axis.transAxes, rotation=90, fontsize=11,
                     ha="center", va="center", parse_math=False)  # fmt: skip
    return save(figure, path, title, caption, tight=labeled)


def _scatter(axis: Any, panel: Scatter, limits: np.ndarray | None) -> None:
    points, under = panel.points, panel.under
    everything = points if under is None else np.r_[points, under]
    box = next((b for b in (panel.limits, limits) if b is not None), None)
    box = cube(everything) if box is None else box
    # Axes of three dimensions do not cut off points outside their limits.
    outside = (points < box[:, 0]) | (points > box[:, 1])
    inside = np.where(outside.any(1, keepdims=True), np.nan, points)
    if under is not None:
        axis.scatter(*under.T, s=3, lw=0, color=GRAY, rasterized=True)
    named = isinstance(panel.color, str)
    color = {"color": panel.color} if named else {"c": panel.color, "cmap": "turbo"}
    axis.scatter(*inside.T, s=4, lw=0, **color)
    axis.set(**dict(zip(("xlim", "ylim", "zlim"), box, strict=False)))
    axis.set_title(panel.title, fontsize=10, parse_math=False)
    axis.tick_params(labelsize=6)
    axis.locator_params(nbins=4)
    if points.shape[1] == 3:
        axis.view_init(elev=12, azim=-72)
        axis.set_box_aspect((1, 1, 1), zoom=1.05)
    else:
        axis.set_box_aspect(1)


def cube(points: np.ndarray, *, drop: float = 0.002) -> np.ndarray:
    """Returns limits [D, 2] of one length around all but a share `drop` of points on each side."""
    low, high = np.quantile(points, (drop, 1 - drop), axis=0)
    half = 0.56 * (high - low).max() + 1e-6
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half], axis=1)


def picture_rows(
    path: Path,
    title: str,
    caption: str,
    columns: Sequence[str],
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
) -> Figure:
    """Draws rows (label, pictures uint8 [H,W,3]), all of one size, under the columns' titles."""
    height, width = rows[0][1][0].shape[:2]
    across = len(rows[0][1])
    cell = min(10.0, 12.0 / across)
    figure = canvas(1.8 + across * cell, 0.3 + len(rows) * (cell * height / width + 0.06))
    axes = figure.subplots(len(rows), across, squeeze=False)
    for (label, pictures), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, name in zip(axes[0], columns, strict=False):
        axis.set_title(name, fontsize=11, parse_math=False)
    return save(figure, path, title, caption, tight=True)


def curves(values: dict[str, list[tuple[int, float]]]) -> str:
    """Draws {name: [(step, value), …]} as an SVG in the page's colors, losses first.

    Each panel shows the range (pale) and the moving average. Positive values that span more than
    a factor of 20 get a logarithmic axis.
    """
    height = -(-len(values) // 3)
    style: Any = {
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
        figure = canvas(10.5, 2.1 * height)
        axes = figure.subplots(height, 3, squeeze=False).ravel()
        losses_first = sorted(values, key=lambda name: not name.startswith("loss/"))
        for axis, name in zip(axes, losses_first, strict=False):
            _curve(axis, name, *np.asarray(values[name], float).T)
        for axis in axes[len(values) :]:
            axis.remove()
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", out.getvalue(), flags=re.S)
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :], count=2)
    return svg.replace(INK, "currentColor")


def _curve(axis: Any, name: str, steps: np.ndarray, values: np.ndarray) -> None:
    bins = np.array_split(np.arange(len(steps)), min(len(steps), 200))
    middle = np.array([steps[b].mean() for b in bins])
    low, mean, high = (np.array([f(values[b]) for b in bins]) for f in (np.min, np.mean, np.max))
    window = np.ones(max(1, len(bins) // 25))
    smooth = np.convolve(mean, window, "same") / np.convolve(np.ones(len(mean)), window, "same")
    axis.plot(middle, mean, color=BLUE, alpha=0.35, lw=0.6)
    axis.fill_between(middle, low, high, color=BLUE, alpha=0.18, lw=0)
    axis.plot(middle, smooth, color=BLUE, lw=1.4, marker="." if len(middle) == 1 else "")
    if values.min() > 0 and values.max() > 20 * values.min():
        axis.set_yscale("log")
        axis.yaxis.set_minor_formatter(NullFormatter())
    axis.set_title(name, fontsize=9, loc="left", parse_math=False)
    axis.margins(x=0.01)
    axis.grid(color=INK, alpha=0.12, lw=0.5)
