"""Pictures that put runs side by side: grids of images and scatters, a row or panel for each."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pmjax import api, builders, config
from pmjax.datasets.batches import to_uint8
from pmjax.evals.figures import Canvas, FigureCanvasAgg
from pmjax.reporting.report import Figure, grid
from pmjax.reproductions.base import Study
from pmjax.storage.workdir import CONFIG

DPI = 130


class Trained(NamedTuple):
    """A run's model, and its test set."""

    label: str
    model: api.Model
    test: np.ndarray
    labels: np.ndarray | None
    seed: int


def trained(study: Study) -> Iterator[Trained]:
    """Yields the models of the study's runs, each of its first finished seed."""
    for run, seed in study.iter_samples():
        where = study.workdir(run, seed)
        test = builders.dataset(config.read(where / CONFIG), "test")
        yield Trained(run.label, api.load(where), test.data, test.labels, seed)


def image_strips(study: Study, *, num: int = 12) -> Iterator[Figure]:
    """Yields reconstructions, samples and interpolations: a strip of images for each run.

    The analogues of the paper's Figures 7 (samples) and 8 (reconstructions).
    """
    samples, reconstructions, between = {}, {}, {}
    for run in trained(study):
        chosen = np.random.default_rng(0).permutation(len(run.test))
        x = run.test[chosen[:num]]
        reconstructions.setdefault("test images", x)
        reconstructions[run.label] = to_uint8(run.model.reconstruct(x))
        samples[run.label] = to_uint8(run.model.sample(num, seed=run.seed))
        a, b = run.test[chosen[num : num + 1]], run.test[chosen[num + 1 : num + 2]]
        between[run.label] = to_uint8(run.model.interpolate(a, b, steps=num)[0])
    for name, title, caption, strips in (
        ("samples", "Samples", "New images by each method's own prior, the first ones, not "
         "selected; the paper's Figure 7.", samples),
        ("reconstructions", "Reconstructions", "Test images and what each method makes of them; "
         "the paper's Figure 8.", reconstructions),
        ("interpolations", "Interpolations", "From one test image to another, in a straight line "
         "through each method's latent space.", between),
    ):  # fmt: skip
        if strips:
            rows = [(label, [grid(images, columns=num)]) for label, images in strips.items()]
            yield images_in_rows(study.figures / f"{name}.png", title, caption, (), rows)


def images_in_rows(
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
    size = (1.8 + across * cell, 0.3 + len(rows) * (cell * height / width + 0.06))
    canvas = Canvas(figsize=size, layout="constrained")
    axes = canvas.subplots(len(rows), across, squeeze=False)
    for (label, pictures), line in zip(rows, axes, strict=True):
        line[0].set_ylabel(label, rotation=0, ha="right", va="center", parse_math=False)
        for axis, picture in zip(line, pictures, strict=True):
            axis.imshow(picture, interpolation="nearest")
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
    for axis, name in zip(axes[0], columns, strict=False):
        axis.set_title(name, fontsize=11, parse_math=False)
    return save(canvas, path, title, caption)


class Cloud(NamedTuple):
    """A panel: points [N, 2 or 3] and their colours; `under` are drawn in grey below them.

    `limits` [D, 2] are those of its axes.
    """

    title: str
    points: np.ndarray
    colour: np.ndarray | str
    under: np.ndarray | None = None
    limits: np.ndarray | None = None


def clouds(
    path: Path,
    title: str,
    caption: str,
    rows: Sequence[tuple[str, Sequence[Cloud | None]]],
    *,
    limits: np.ndarray | None = None,
) -> Figure:
    """Draws rows (label, panels) of scatters; None leaves a panel empty.

    `limits` [D, 2] are those of all axes; without them, each panel has its own. Points beyond
    them are left out.
    """
    across = max(len(panels) for _, panels in rows)
    canvas = Canvas(figsize=(1.2 + 2.7 * across, 2.7 * len(rows)), layout="constrained")
    for i, (label, panels) in enumerate(rows):
        for j, cloud in enumerate(panels):
            if cloud is None:
                continue
            solid = cloud.points.shape[1] == 3
            axis = canvas.add_subplot(
                len(rows), across, i * across + j + 1, projection="3d" if solid else None
            )
            both = cloud.points if cloud.under is None else np.r_[cloud.points, cloud.under]
            box = next((b for b in (cloud.limits, limits) if b is not None), cube(both))
            # Axes of three dimensions do not cut off what is beyond them.
            beyond = (cloud.points < box[:, 0]) | (cloud.points > box[:, 1])
            inside = np.where(beyond.any(1, keepdims=True), np.nan, cloud.points)
            if cloud.under is not None:
                axis.scatter(*cloud.under.T, s=3, lw=0, color="#c9cdd4", rasterized=True)
            plain = {"color": cloud.colour} if isinstance(cloud.colour, str) else {
                "c": cloud.colour, "cmap": "turbo"}  # fmt: skip
            axis.scatter(*inside.T, s=3, lw=0, **plain)
            axis.set(**dict(zip(("xlim", "ylim", "zlim"), box, strict=False)))
            axis.set_title(cloud.title, fontsize=9, parse_math=False)
            axis.tick_params(labelsize=6)
            axis.locator_params(nbins=4)
            if solid:
                axis.view_init(elev=12, azim=-72)
                axis.set_box_aspect((1, 1, 1), zoom=1.05)
            else:
                axis.set_box_aspect(1)
            if j == 0:
                side = axis.text2D if solid else axis.text
                side(-0.28, 0.5, label, transform=axis.transAxes, rotation=90, fontsize=11,
                     ha="center", va="center", parse_math=False)  # fmt: skip
    return save(canvas, path, title, caption)


def cube(points: np.ndarray) -> np.ndarray:
    """Returns limits [D, 2] of one length, which hold the points but for the farthest."""
    low, high = np.quantile(points, (0.002, 0.998), axis=0)
    half = 0.56 * (high - low).max() + 1e-6
    return np.stack([(low + high) / 2 - half, (low + high) / 2 + half], axis=1)


def save(canvas: Canvas, path: Path, title: str, caption: str) -> Figure:
    """Writes a canvas as a PNG."""
    FigureCanvasAgg(canvas)
    # 'tight' widens the picture for labels that the layout has no room for.
    look = {"dpi": DPI, "facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.1}
    canvas.savefig(path, metadata={"Software": None}, **look)
    return Figure(title, caption, path)
