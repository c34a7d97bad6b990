"""ACAI's lines: the pictures, the data set, and the two figures of an interpolation."""

import types

import numpy as np
import pytest
import scipy.spatial

from pmjax import to_uint8
from pmjax.datasets import lines, loader
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.evals.context import Context
from pmjax.evals.metrics import lines as task


def angles(num, seed=0):
    return np.random.default_rng(seed).uniform(0, 2 * np.pi, num)


def rendered(theta):
    return to_float(lines.render(np.ravel(theta))[..., None])


class Turning:
    """Knows the angles of images and turns from one to the other, by the shorter way."""

    def __init__(self, path=lambda share: share):
        self.path = path

    def interpolate(self, a, b, *, steps):
        start, end = (task.nearest_lines(to_float(x))[1][:, None] for x in (a, b))
        share = self.path(np.linspace(0, 1, steps))
        turn = np.angle(np.exp(1j * (end - start)))
        return rendered(start + share * turn).reshape(len(a), steps, 32, 32, 1)


class Blending:
    """Interpolates pixels."""

    def interpolate(self, a, b, *, steps):
        share = np.linspace(0, 1, steps, dtype=np.float32)[:, None, None, None]
        return (1 - share) * to_float(a)[:, None] + share * to_float(b)[:, None]


def run(model, data=None, **args):
    data = to_uint8(rendered(angles(120))) if data is None else data
    split = types.SimpleNamespace(data=data, labels=None)
    ctx = Context(model=model, train=split, test=split, priors=())
    return {
        k.removeprefix("lines/"): v for k, v in runner.run(["lines"], ctx, {"lines": args}).items()
    }


def test_a_line_begins_at_the_center_ends_at_the_border_and_is_two_pixels_wide():
    right, up = lines.render([0, np.pi / 2]) / 255
    assert right.sum() == 32 and (right[15:17, 16:] == 1).all()
    assert up.sum() == 32 and (up[:16, 15:17] == 1).all()
    diagonal = lines.render([np.pi / 4])[0] / 255
    assert diagonal[:16, 16:].sum() > 0.9 * diagonal.sum()
    assert diagonal.sum() == pytest.approx(32, rel=0.03)


def test_lines_turn_with_their_angle_and_are_antialiased():
    theta = angles(50)
    found = lines.render(theta) / 255
    row, column = np.mgrid[:32, :32] - 15.5
    weight = found.sum((1, 2))
    middle = [(found * grid).sum((1, 2)) / weight for grid in (column, -row)]
    np.testing.assert_allclose(np.arctan2(*middle[::-1]) % (2 * np.pi), theta, atol=0.01)
    np.testing.assert_allclose(np.hypot(*middle), 8, atol=0.1)
    near = np.abs(lines.render(theta + 1e-3).astype(int) - lines.render(theta)).max()
    assert 0 < near < 0.03 * 255


def test_the_data_set_is_labeled_with_the_angle_it_is_drawn_at(tmp_path):
    loaded = [loader.load("lines", split, cache_dir=tmp_path) for split in ("train", "test")]
    assert [split.data.shape for split in loaded] == [(5000, 32, 32, 1), (1000, 32, 32, 1)]
    for split in loaded:
        assert split.labels.dtype == np.float32
        np.testing.assert_array_equal(lines.render(split.labels)[..., None], split.data)
        quarters = np.bincount((split.labels // (np.pi / 2)).astype(int), minlength=4)
        assert quarters.min() > 0.2 * len(split.data)
    assert not set(loaded[0].labels) & set(loaded[1].labels)


def test_the_nearest_line_agrees_with_scipy():
    images = np.random.default_rng(0).uniform(-1, 1, (5, 32, 32, 1)).astype(np.float32)
    images[1:] = 0.2 * images[1:] + rendered(angles(4))
    bank = np.linspace(0, 2 * np.pi, 10_000, endpoint=False)
    distances = scipy.spatial.distance.cdist(
        images.reshape(5, -1), rendered(bank).reshape(10_000, -1), "cosine"
    )
    found, theta = task.nearest_lines(images)
    np.testing.assert_allclose(found, distances.min(1), atol=1e-6)
    np.testing.assert_array_equal(theta[1:], bank[distances.argmin(1)][1:])


def test_angles_are_found_again():
    theta = angles(300, seed=1)
    distances, found = task.nearest_lines(rendered(theta))
    assert distances.max() < 1e-5
    assert np.abs(np.angle(np.exp(1j * (found - theta)))).max() < 0.002


def test_a_perfect_interpolation_has_distance_and_smoothness_of_about_0():
    values = run(Turning())
    assert values["mean_distance"] < 1e-5 and values["distance_floor"] < 1e-5
    assert abs(values["smoothness"]) < 0.03 and values["invalid"] == 0


def test_a_blend_of_pixels_is_far_from_lines_and_jumps():
    values = run(Blending())
    assert values["mean_distance"] > 5e-3
    assert values["smoothness"] > 0.5


def test_an_uneven_turn_has_the_smoothness_of_its_largest_step():
    values = run(Turning(lambda share: np.repeat([0, 0.7, 1], [4, 4, 8])))
    assert values["smoothness"] == pytest.approx(0.7 - 1 / 15, abs=0.02)
    assert values["mean_distance"] < 1e-5


def test_smoothness_is_of_unwrapped_angles():
    turn = np.linspace(0, 1, 16)
    across = (6 + turn) % (2 * np.pi)
    backwards = (0.5 - turn) % (2 * np.pi)
    np.testing.assert_allclose(task.smoothness_of(np.stack([across, backwards])), 0, atol=1e-12)
    one_step = np.where(np.arange(16) < 9, 0.1, 2.0)
    assert task.smoothness_of(one_step[None])[0] == pytest.approx(14 / 15)
    there_and_back = np.r_[np.linspace(0, 1, 8), np.linspace(1, 0, 8)]
    assert np.isnan(task.smoothness_of(there_and_back[None])[0])


def test_interpolations_that_end_where_they_begin_are_counted():
    values = run(Turning(lambda share: 0 * share))
    assert values["invalid"] == 1
    assert values["smoothness"] == 0 and values["smoothness_strict"] == pytest.approx(14 / 15)


@pytest.mark.parametrize("size", [28, 32])
def test_other_data_are_refused(size):
    noise = np.random.default_rng(0).integers(0, 256, (9, size, size, 1), np.uint8)
    with pytest.raises(UserError, match="needs the data set 'lines'"):
        run(Turning(), noise)


def test_arguments_that_give_nothing_are_refused():
    with pytest.raises(UserError, match="num=0 must be at least 1"):
        run(Turning(), num=0)
