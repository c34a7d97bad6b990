"""Pictures that put runs side by side."""

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
            yield picture_rows(study.figures / f"{name}.png", title, caption, (), rows)
