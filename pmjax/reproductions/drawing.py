"""Figures that compare runs side by side."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pmjax import api, builders, config
from pmjax.datasets.batches import to_uint8
from pmjax.reporting.images import Figure, grid
from pmjax.reporting.plots import picture_rows
from pmjax.reproductions.base import Study
from pmjax.storage.workdir import CONFIG


class Trained(NamedTuple):
    """The model of a run and its test set."""

    label: str
    model: api.Model
    test: np.ndarray
    labels: np.ndarray | None
    seed: int


def trained(study: Study) -> Iterator[Trained]:
    """Yields the models of the study's runs, each for its first finished seed."""
    for run, seed in study.shown():
        where = study.workdir(run, seed)
        test = builders.dataset(config.read(where / CONFIG), "test")
        yield Trained(run.label, api.load(where), test.data, test.labels, seed)


def image_strips(study: Study, *, num: int = 12) -> Iterator[Figure]:
    """Yields samples (Figure 7), reconstructions (Figure 8) and interpolations, a strip per run."""
    samples: dict[str, np.ndarray] = {}
    reconstructions, interpolations = samples.copy(), samples.copy()
    for run in trained(study):
        chosen = np.random.default_rng(0).permutation(len(run.test))
        x = run.test[chosen[:num]]
        reconstructions.setdefault("test images", x)
        reconstructions[run.label] = to_uint8(run.model.reconstruct(x))
        samples[run.label] = to_uint8(run.model.sample(num, seed=run.seed))
        a, b = run.test[chosen[num : num + 1]], run.test[chosen[num + 1 : num + 2]]
        interpolations[run.label] = to_uint8(run.model.interpolate(a, b, steps=num)[0])
    for name, title, caption, strips in (
        ("samples", "Samples", "The first samples of each method's own prior, not selected; the "
         "paper's Figure 7.", samples),
        ("reconstructions", "Reconstructions", "Test images and their reconstructions by each "
         "method; the paper's Figure 8.", reconstructions),
        ("interpolations", "Interpolations", "From one test image to another, on a straight line "
         "in each method's latent space.", interpolations),
    ):  # fmt: skip
        if strips:
            rows = [(label, [grid(images, columns=num)]) for label, images in strips.items()]
            yield picture_rows(study.figures / f"{name}.png", title, caption, (), rows)
