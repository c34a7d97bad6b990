from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from pmjax.datasets.batches import to_float
from pmjax.evals import figures
from pmjax.reporting import images


class Mirror:
    """An autoencoder that is perfect: its latent is the example; each prior gives one value."""

    def __init__(self, shape, base=None):
        self.shape, self.base = shape, base

    def interpolate(self, a, b, steps):
        share = np.linspace(0, 1, steps).reshape(1, steps, *[1] * len(self.shape))
        return ((1 - share) * to_float(a)[:, None] + share * to_float(b)[:, None]).astype("f")

    def sample_latent(self, num, *, seed=0, prior=None):
        return np.random.default_rng(seed).normal(size=(num, 2 if self.base else 5)).astype("f")

    def sample_base(self, num, *, seed=0):
        return self.base and np.random.default_rng(seed).normal(size=(num, self.base))


def context(data, labels, model, priors):
    dim = 2 if model.base else 5
    return SimpleNamespace(
        model=model,
        test=SimpleNamespace(data=data, labels=labels),
        priors=priors,
        seed=0,
        samples=lambda prior: data[::-1],
        reconstructions=lambda split, rows: np.asarray(to_float(data[rows])),
        embeddings=lambda split: np.random.default_rng(1).normal(size=(len(data), dim)).astype("f"),
    )


@pytest.fixture(scope="module", params=[1, 3], ids=["gray", "color"])
def image_figures(request, tmp_path_factory):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256, (70, 28, 28, request.param)).astype(np.uint8)
    ctx = context(data, np.arange(70) % 10, Mirror(data.shape[1:]), ("latent_gan", "gmm"))
    drawn = figures.draw(ctx, tmp_path_factory.mktemp("images"))
    return data, {figure.path.stem: np.asarray(Image.open(figure.path)) for figure in drawn}


def test_images_get_all_their_figures(image_figures):
    assert list(image_figures[1]) == [
        "samples_latent_gan", "samples_gmm", "reconstructions", "interpolations", "latents",
        "moments",
    ]  # fmt: skip


def test_samples_are_the_first_64_that_were_measured(image_figures):
    data, drawn = image_figures
    np.testing.assert_array_equal(drawn["samples_gmm"], images.grid(data[::-1][:64]))


def test_reconstructions_stand_below_their_originals(image_figures):
    sheet = image_figures[1]["reconstructions"]
    assert sheet.shape == (4 * (112 + 2) + 2, 8 * 58 + 2, 3)
    for row in range(4):
        y = 2 + 114 * row
        np.testing.assert_array_equal(sheet[y : y + 56], sheet[y + 56 : y + 112])


def test_interpolations_are_rows_of_nine_from_one_test_image_to_another(image_figures):
    data, drawn = image_figures
    sheet = drawn["interpolations"]
    assert sheet.shape == (8 * 58 + 2, 9 * 58 + 2, 3)
    known = {np.broadcast_to(image, (28, 28, 3)).tobytes() for image in data}
    cells = [[sheet[2 + 58 * r :, 2 + 58 * c :][:56:2, :56:2] for c in range(9)] for r in range(8)]
    for row in cells:
        assert [cell.tobytes() in known for cell in row] == [True] + [False] * 7 + [True]


@pytest.mark.parametrize(("num", "count"), [(0, 2), (1, 4), (2, 5)])
def test_few_unlabeled_images_get_the_figures_that_they_are_enough_for(tmp_path, num, count):
    data = np.random.default_rng(0).integers(0, 256, (num, 8, 8, 1)).astype(np.uint8)
    ctx = context(data, None, Mirror((8, 8, 1)), ("gaussian",))
    ctx.samples = lambda prior: np.zeros((1, 8, 8, 1), np.uint8)
    ctx.embeddings = lambda split: np.ones((num if split == "test" else 1, 5), np.float32)
    drawn = figures.draw(ctx, tmp_path)
    assert len(drawn) == count and all(figure.path.stat().st_size for figure in drawn)


@pytest.mark.parametrize("dim", [1, 6])
def test_the_moments_of_each_coordinate_are_drawn(dim, tmp_path, monkeypatch):
    z = np.random.default_rng(0).normal(3, 2, (400, dim)).astype("f")
    z[:, -1] = 0.5  # a coordinate that says nothing is uncorrelated with all others
    canvases = []
    monkeypatch.setattr(figures.plots, "save", lambda canvas, *args: canvases.append(canvas))
    figures._moments(SimpleNamespace(embeddings=lambda split: {"train": z}[split]), tmp_path)
    mean, variance, correlations = canvases[0].axes[:3]
    np.testing.assert_allclose(mean.lines[-1].get_ydata(), z.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance.lines[-1].get_ydata(), z.var(0), rtol=1e-5)
    expected = np.zeros((dim, dim))
    if dim > 1:
        expected[:-1, :-1] = np.corrcoef(z[:, :-1].T)
    np.testing.assert_allclose(correlations.images[0].get_array(), expected, atol=1e-2)


@pytest.fixture
def point_panels(monkeypatch, tmp_path):
    """Returns a function that draws points and gives each figure's panels (name, shape)."""

    def draw(base, dim=3, num=50):
        rng = np.random.default_rng(0)
        points, t = rng.uniform(-1, 1, (num, dim)).astype("f"), rng.uniform(5, 14, num).astype("f")
        panels, scatters = {}, figures._scatters

        def spy(given, path, *args, **kwargs):
            panels[path.stem] = [(name, x.shape, len(color)) for name, x, color in given]
            return scatters(given, path, *args, **kwargs)

        monkeypatch.setattr(figures, "_scatters", spy)
        ctx = context(points, t, Mirror((dim,), base), ("latent_gan", "gmm"))
        for figure in figures.draw(ctx, tmp_path):
            width, height = Image.open(figure.path).size
            assert width > 2.5 * height
        return panels

    return draw


def test_points_get_the_manifolds_of_figure_4_and_the_latents_of_figure_5(point_panels):
    assert point_panels(base=2) == {
        "manifolds": [(n, (50, 3), 50) for n in ("input", "reconstruction", "generation")],
        "manifolds_other_priors": [("gmm", (50, 3), 50)],
        "latents": [(n, (50, 2), 50) for n in ("embedding", "base prior", "generated latent")],
    }


@pytest.mark.parametrize("num", [0, 1])
def test_few_points_are_drawn_and_none_are_not(point_panels, num):
    assert len(point_panels(base=2, num=num)) == (3 if num else 0)


def test_a_prior_without_a_base_has_two_panels_of_latents(point_panels):
    assert [panel[0] for panel in point_panels(base=None)["latents"]] == [
        "embedding",
        "generated latent",
    ]


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_points_of_other_dimensions_are_shown_in_a_plane(point_panels, dim):
    assert {shape for _, shape, _ in point_panels(base=2, dim=dim)["manifolds"]} == {(50, 2)}


def test_figures_are_the_same_for_the_same_run(tmp_path):
    data = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    ctx = context(data, np.arange(20) % 3, Mirror((8, 8, 3)), ("gmm",))
    first, second = (
        [figure.path.read_bytes() for figure in figures.draw(ctx, tmp_path / name)] for name in "ab"
    )
    assert first == second
