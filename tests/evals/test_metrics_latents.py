"""The embedding against its priors, its classes and the data, on models with known answers."""

import functools
import types

import numpy as np
import ot
import pytest
import scipy.special
import scipy.stats
from sklearn.base import BaseEstimator
from sklearn.datasets import load_digits

from pmjax.datasets import swiss_roll
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.evals.context import Context
from pmjax.evals.features import efficientnet_lite0
from pmjax.evals.metrics import (
    c2st,
    energy,
    kmeans,
    memorization,
    sinkhorn,
    sliced_wasserstein,
    topology,
    wasserstein,
)
from pmjax.priors import knn_jitter


def normal(num, seed, dim=3):
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


class Model:
    """The identity on points, or on pixels, with priors that are functions of (num, seed)."""

    def __init__(self, shape=(3,), **priors):
        self.shape, self.priors = shape, priors

    def encode(self, x):
        return to_float(np.asarray(x)).reshape(len(x), -1)

    def decode(self, z):
        return z.reshape(-1, *self.shape)

    def reconstruct(self, x):
        return self.decode(self.encode(x))

    def sample_latent(self, num, *, seed, prior=None):
        return self.priors[prior](num, seed)

    def sample(self, num, *, seed, prior=None):
        return self.decode(self.sample_latent(num, seed=seed, prior=prior))


def context(train, test, model, labels=(None, None), **args):
    train, test = (
        types.SimpleNamespace(data=data, labels=each)
        for data, each in zip((train, test), labels, strict=True)
    )
    priors = tuple(name for name in model.priors if name != "knn_jitter")
    return Context(model=model, train=train, test=test, priors=priors, **args)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = (images * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images[:1000], images[1000:], labels[:1000], labels[1000:]


# Whether latents have the distribution of embeddings.


def test_energy_distance_agrees_with_scipy_in_one_dimension():
    a, b = normal(200, 0, 1), 2 * normal(150, 1, 1)
    expected = scipy.stats.energy_distance(a[:, 0], b[:, 0]) ** 2
    found, _ = energy.two_sample(a, b, permutations=1, seed=0)
    assert found == pytest.approx(expected, rel=1e-6)


def test_energy_distance_of_two_gaussians_has_its_closed_form():
    def mean_length(shift, dim=3, variance=2):  # of N(shift, variance I)
        hyper = scipy.special.hyp1f1(-0.5, dim / 2, -(shift**2) / (2 * variance))
        ratio = np.exp(scipy.special.gammaln((dim + 1) / 2) - scipy.special.gammaln(dim / 2))
        return np.sqrt(2 * variance) * ratio * hyper

    distances, ps = zip(
        *(
            energy.two_sample(
                normal(500, seed),
                normal(500, seed + 20) + np.float32([1.5, 0, 0]),
                permutations=19,
                seed=seed,
            )
            for seed in range(20)
        ),
        strict=True,
    )
    expected = 2 * mean_length(1.5) - 2 * mean_length(0)
    assert np.mean(distances) == pytest.approx(expected, rel=0.08)
    assert set(ps) == {0.05}
    a = normal(50, 0)
    assert energy.two_sample(a, a[::-1], permutations=19, seed=0) == (pytest.approx(0, abs=1e-9), 1)


@pytest.mark.parametrize("test", ["energy", "c2st"])
def test_p_values_are_uniform_when_there_is_no_difference(test):
    ps = []
    for seed in range(60):
        a, b = np.split(normal(80, seed, 2), 2)
        if test == "energy":
            ps.append(energy.two_sample(a, b, permutations=199, seed=seed)[1])
        else:
            ps.append(c2st.two_sample(a, b, classifier="knn", seed=seed)[1])
    if test == "energy":
        assert scipy.stats.kstest(ps, "uniform").pvalue > 0.05
    else:  # few values are possible, so that they are on the safe side
        assert np.mean(np.array(ps) <= 0.1) <= 0.15 and np.mean(np.array(ps) <= 0.5) > 0.2


@pytest.mark.parametrize("metric", ["energy", "c2st"])
def test_a_prior_that_fits_is_told_apart_from_one_that_does_not(metric):
    model = Model(
        own=lambda num, seed: normal(num, seed, 8),
        wide=lambda num, seed: 1.5 * normal(num, seed, 8),
    )
    ctx = context(normal(600, 1, 8), normal(500, 2, 8), model)
    first, second = (runner.run([metric], ctx) for _ in range(2))
    assert first == second
    for what in ("own", "train"):
        assert first[f"{metric}_p/{what}"] > 0.02
        assert first[f"{metric}/{what}"] < first[f"{metric}/wide"]
    assert first[f"{metric}_p/wide"] <= 0.002


@pytest.mark.parametrize("classifier", c2st.CLASSIFIERS)
def test_each_classifier_sees_a_shift_by_one_deviation(classifier):
    a, b = normal(300, 0, 2), normal(300, 1, 2) + np.float32([1, 0])
    accuracy, p = c2st.two_sample(a, b, classifier=classifier, seed=0)
    best = scipy.stats.norm.cdf(0.5)
    assert best - 0.1 < accuracy < best + 0.05 and p < 1e-4


class Sign(BaseEstimator):
    """Calls what has a positive first coordinate a's; the second says what truly is."""

    def fit(self, x, is_a):
        self.fitted_ = True
        return self

    def predict(self, x):
        self.called, self.true = x[:, 0] > 0, x[:, 1] > 0
        return self.called


def test_the_classifiers_p_value_is_fishers(monkeypatch):
    sign = Sign()
    monkeypatch.setitem(c2st.CLASSIFIERS, "sign", lambda n, seed: sign)
    a, b = np.c_[normal(60, 0, 1) + 0.5, np.ones(60)], np.c_[normal(50, 1, 1), np.zeros(50)]
    accuracy, p = c2st.two_sample(a, b, classifier="sign", seed=0)
    called, true = sign.called, sign.true
    assert (len(true), true.sum()) == (55, 30)
    assert accuracy == pytest.approx(np.mean(called == true))
    table = [
        [np.sum(called & true), np.sum(called & ~true)],
        [np.sum(~called & true), np.sum(~called & ~true)],
    ]
    assert p == pytest.approx(scipy.stats.fisher_exact(table, "greater").pvalue)
    assert 1e-5 < p < 0.5


def test_an_unknown_classifier_is_refused_with_the_nearest():
    ctx = context(normal(9, 0), normal(9, 1), Model(own=normal))
    with pytest.raises(UserError, match="Did you mean 'logistic'"):
        runner.run(["c2st"], ctx, {"c2st": {"classifier": "logistics"}})


# Whether samples are copies.


def test_copies_of_training_examples_are_exposed_and_new_ones_are_not():
    train, test = normal(2000, 0, 8), normal(500, 1, 8)

    def jitter(num, seed):
        rng = np.random.default_rng(seed)
        copies = train[rng.integers(len(train), size=num)]
        return copies + 0.01 * rng.normal(size=copies.shape).astype(np.float32)

    model = Model((8,), own=lambda num, seed: normal(num, seed, 8), knn_jitter=jitter)
    values = runner.run(["memorization"], context(train, test, model))
    for space in ("embedding", "data"):
        assert values[f"memorization/{space}/own"] == pytest.approx(1, abs=0.05)
        assert values[f"memorization/{space}/test"] == 1
        assert values[f"memorization/{space}/knn_jitter"] < 0.03
        # A new example and the one that it is nearest to are about as likely to be apart.
        assert 0.3 < values[f"authenticity/{space}/own"] < 0.7
        assert values[f"authenticity/{space}/knn_jitter"] < 0.01


def test_memorization_agrees_with_its_definition_on_images_in_several_parts(digits, monkeypatch):
    monkeypatch.setattr(memorization, "AT_ONCE", 64)
    pixels = lambda x, **_: [to_float(x).reshape(len(x), -1)]  # noqa: E731
    monkeypatch.setattr(efficientnet_lite0, "stream", pixels)
    train, test = digits[0][:300], digits[1][:100]
    halves = Model((8, 8, 1), own=lambda num, seed: 0.5 * to_float(train[:num]).reshape(num, -1))
    ctx = context(train, test, halves)
    values = runner.run(["memorization"], ctx, {"memorization": {"control": None}})
    x, y = (to_float(each).reshape(len(each), -1).astype(np.float64) for each in (train, test))
    compared = {"own": x[:100] / 2, "test": y}
    distances = {what: np.linalg.norm(z[:, None] - x, axis=-1) for what, z in compared.items()}
    others = np.linalg.norm(x[:, None] - x, axis=-1) + np.diag(np.full(len(x), np.inf))
    ratio = distances["own"].min(1).mean() / distances["test"].min(1).mean()
    assert values["memorization/data/own"] == pytest.approx(ratio, rel=1e-5)
    assert values["memorization/embedding/own"] == pytest.approx(ratio, rel=1e-5)
    for what, each in distances.items():
        authentic = np.mean(each.min(1) > others.min(1)[each.argmin(1)])
        assert values[f"authenticity/data/{what}"] == pytest.approx(authentic)
    assert values["memorization/data/recon"] == pytest.approx(1, rel=1e-5)
    for what in ("own", "recon"):  # equal but for the rounding of samples to images
        data, features = (values[f"memorization/{space}/{what}"] for space in ("data", "features"))
        assert features == pytest.approx(data, rel=0.01)
    assert not any(key.endswith("knn_jitter") for key in values)


def test_a_test_set_that_is_the_training_set_is_reported():
    x = normal(20, 0)
    with pytest.raises(UserError, match="equal to a training example"):
        runner.run(["memorization"], context(x, x, Model(knn_jitter=normal)))


# Distances between samples and data.


@pytest.mark.parametrize(
    "distances",
    [
        lambda a, b: energy.two_sample(a, b, permutations=9, seed=0),
        lambda a, b: c2st.two_sample(a, b, classifier="knn", seed=0),
        lambda a, b: sinkhorn.sinkhorn2(a, b, epsilon=0.1),
        wasserstein.wasserstein2,
        lambda a, b: np.concatenate(memorization.nearest_rows(a, b, 2)),
        lambda a, b: [*topology.preservation("topology", a, a[:, :9], 12).values()],
        lambda a, b: kmeans.whitened(a, b)[1] @ kmeans.whitened(a, b)[1].T,
        lambda a, b: knn_jitter.Prior().fit(a, seed=0)["distance"],
    ],
    ids=["energy", "c2st", "sinkhorn", "w2", "nearest", "topology", "kmeans", "jitter"],
)
def test_distances_do_not_depend_on_a_mean_far_from_zero(distances):
    a, b = (1e8 + normal(60, seed, dim=20).astype(np.float64) for seed in range(2))
    near = distances(a - 1e8, b - 1e8)  # the differences are exact
    np.testing.assert_allclose(distances(a, b), near, rtol=1e-4, atol=1e-6)


def test_sinkhorn_tends_to_the_exact_distance():
    a, b = normal(150, 0), normal(150, 1) + np.float32([1, 0, 0])
    exact = np.sqrt(ot.emd2([], [], ot.dist(a.astype(np.float64), b.astype(np.float64))))
    errors = [abs(sinkhorn.sinkhorn2(a, b, epsilon=e) - exact) for e in (1, 0.1, 0.02)]
    assert errors[2] < errors[1] < errors[0] and errors[2] < 0.005 * exact


@pytest.mark.parametrize("epsilon", [0.1, 1.0])
def test_sinkhorns_cost_is_that_of_pots_plan(epsilon):
    a, b = normal(60, 0), normal(80, 1) + np.float32([1, 0, 0])
    costs = ot.dist(a.astype(np.float64), b.astype(np.float64))
    plan = ot.bregman.sinkhorn_log([], [], costs, epsilon, stopThr=1e-10, numItermax=10_000)
    entropy = np.sum(plan * np.log(plan * plan.size + 1e-300))
    expected = np.sum(plan * costs) + epsilon * entropy
    found = sinkhorn.transport_cost(a, b, epsilon=epsilon)
    assert found == pytest.approx(expected, rel=1e-4)


def test_sinkhorn_is_0_for_equal_sets_and_the_length_of_a_shift():
    a = normal(100, 0)
    assert sinkhorn.sinkhorn2(a, a[::-1], epsilon=0.1) < 1e-2
    shifted = sinkhorn.sinkhorn2(a, a + np.float32([2, 3, 6]), epsilon=0.5)
    assert shifted == pytest.approx(7, rel=1e-3)


def test_sinkhorn_that_does_not_converge_is_reported(monkeypatch):
    monkeypatch.setattr(sinkhorn, "TOLERANCE", 0.0)
    with pytest.raises(UserError, match="set a larger --config.eval.args.sinkhorn.regularisation"):
        sinkhorn.transport_cost(normal(7, 0), normal(7, 1), epsilon=1.0)


def test_sliced_distance_agrees_with_pot_and_with_the_closed_form_of_a_shift():
    a, b = normal(300, 0, 40), 2 * normal(300, 1, 40)
    directions = np.random.default_rng(5).normal(size=(50, 40))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    expected = ot.sliced_wasserstein_distance(a, b, projections=directions.T, p=2)
    found = sliced_wasserstein.sliced_wasserstein2(a, b, projections=50, seed=5)
    assert found == pytest.approx(expected, rel=1e-5)
    # One value a row: some BLAS round sums of several by where the row stands.
    axes = np.diag(a[0])
    assert sliced_wasserstein.sliced_wasserstein2(axes, axes[::-1], projections=50, seed=0) == 0
    shifted = sliced_wasserstein.sliced_wasserstein2(a, a + 3, projections=2000, seed=0)
    assert shifted == pytest.approx(3, rel=0.05)  # ‖shift‖ / √D


def test_sliced_distance_orders_priors_on_images(digits):
    train, test = digits[:2]

    def noisy(level):
        def draw(num, seed):
            rng = np.random.default_rng(seed)
            x = to_float(train[rng.integers(len(train), size=num)]).reshape(num, -1)
            return x + level * rng.normal(size=x.shape).astype(np.float32)

        return draw

    model = Model((8, 8, 1), clean=noisy(0), noisy=noisy(0.3), noisier=noisy(1))
    values = runner.run(["sliced_wasserstein"], context(train, test, model, num_samples=700))
    sliced = {key.split("/")[1]: value for key, value in values.items()}
    assert sliced["clean"] == pytest.approx(sliced["floor"], rel=0.3)
    assert sliced["clean"] < sliced["noisy"] < sliced["noisier"]


def test_sinkhorn_orders_priors_and_has_a_floor():
    model = Model(own=normal, shifted=lambda num, seed: normal(num, seed) + np.float32(0.5))
    ctx = context(normal(10, 0), normal(10, 1), model, fresh=normal)
    values = runner.run(["sinkhorn"], ctx, {"sinkhorn": {"draws": 2, "num": 150}})
    assert values["sinkhorn/own"] == pytest.approx(values["sinkhorn/floor"], rel=0.3)
    assert values["sinkhorn/shifted"] > 1.5 * values["sinkhorn/floor"]


# The swiss roll.


def test_unrolling_finds_the_coordinates_and_the_noise():
    x, t = swiss_roll.points(2000, 0)
    found, sheet, distance = swiss_roll.unroll(x)
    np.testing.assert_allclose(found, t, atol=0.06)  # five deviations of the noise, t ≥ 4.7
    normal_noise = np.sqrt(2 / np.pi) * swiss_roll.NOISE / swiss_roll.SCALE
    assert distance.mean() == pytest.approx(normal_noise, rel=0.05)
    steps = np.linspace(*swiss_roll.T, 100_000)
    spiral = np.stack([steps * np.cos(steps), 0 * steps, steps * np.sin(steps)], 1)
    length = np.linalg.norm(np.diff(spiral, axis=0), axis=1).sum() / swiss_roll.SCALE
    ends = swiss_roll.unroll((spiral[[0, -1]] - swiss_roll.CENTER) / swiss_roll.SCALE)[1]
    assert np.diff(ends[:, 0]) == pytest.approx(length, rel=1e-4)


class Roll(Model):
    """Latents are places on the flat sheet, between 0 and 1; the second prior covers half of it."""

    def __init__(self, decode=lambda t, height: (t, height)):
        super().__init__(
            own=lambda num, seed: np.random.default_rng(seed).uniform(size=(num, 2)),
            half=lambda num, seed: np.random.default_rng(seed).uniform(size=(num, 2)) * [0.5, 1],
        )
        self._decode = decode

    def decode(self, z):
        t, height = self._decode(*np.asarray(z, np.float64).T)
        t = swiss_roll.T[0] + t * (swiss_roll.T[1] - swiss_roll.T[0])
        x = np.stack([t * np.cos(t), height * swiss_roll.HEIGHT[1], t * np.sin(t)], 1)
        return ((x - swiss_roll.CENTER) / swiss_roll.SCALE).astype(np.float32)


def roll(model):
    test = swiss_roll.points(1500, 1)[0]
    values = runner.run(["swiss_roll"], context(test, test, model), {"swiss_roll": {"num": 1000}})
    return {key.removeprefix("swiss_roll/"): value for key, value in values.items()}


def test_a_roll_out_of_a_flat_sheet_is_near_and_whole_and_half_of_it_is_not():
    values = roll(Roll())
    assert values["distance/own"] < 0.1 * values["distance/floor"] and values["off/own"] == 0
    assert values["off/floor"] == pytest.approx(0.01, abs=0.01)
    assert (
        max(values[f"ks_{c}/{what}"] for c in ("t", "height") for what in ("own", "floor")) < 0.06
    )
    assert values["ks_t/half"] > 0.45 and values["ks_height/half"] < 0.06
    assert values["trustworthiness"] > 0.98 and values["continuity"] > 0.98
    assert values["geodesic_correlation"] > 0.7  # the latents' square is not as long as the sheet
    assert values["distance_correlation"] > 0.7 and values["neighbours_kept"] > 0.4


@pytest.mark.parametrize("kind", ["noise", "modes"])
def test_distances_from_the_roll_grow_with_noise_and_with_lost_parts(kind):
    key, levels = {
        "noise": ("distance", (0, 0.02, 0.1, 0.5)), "modes": ("ks_t", (0, 0.1, 0.25, 0.5))
    }[kind]  # fmt: skip
    test, values = swiss_roll.points(1500, 1)[0], []

    def worse(level, num, seed):
        rng = np.random.default_rng(seed)
        x, t = swiss_roll.points(3 * num, seed)
        if kind == "noise":
            return (x + level * rng.normal(size=x.shape).astype(np.float32))[:num]
        start, end = swiss_roll.T
        return x[t < end - level * (end - start)][:num]

    for level in levels:
        model = Model(own=functools.partial(worse, level))
        values.append(
            runner.run(["swiss_roll"], context(test, test, model), {"swiss_roll": {"num": 500}})
        )
    found = [each[f"swiss_roll/{key}/own"] for each in values]
    assert np.all(np.diff(found) > 0), found
    assert found[0] == pytest.approx(values[0][f"swiss_roll/{key}/floor"], rel=0.6)


def test_a_torn_sheet_and_a_folded_one_are_told_apart():
    torn = roll(Roll(lambda t, height: ((t * 16 // 1 % 4 + t * 4) / 8, height)))
    folded = roll(Roll(lambda t, height: (np.abs(2 * t - 1), height)))
    assert torn["trustworthiness"] < 0.9 < 0.95 < torn["continuity"]
    assert folded["continuity"] < 0.9 < 0.95 < folded["trustworthiness"]
    assert folded["geodesic_correlation"] < 0.5
    assert folded["neighbours_kept"] < 0.7 * roll(Roll())["neighbours_kept"]


def test_points_between_the_sheets_are_off():
    model = Model(own=lambda num, seed: normal(num, seed) * np.float32(0.5))
    values = roll(model)
    assert values["off/own"] > 0.8 and values["distance/own"] > 5 * values["distance/floor"]


# The classes.


def test_whitening_is_by_the_training_set_and_leaves_constant_directions_out():
    z = normal(400, 0, 4) @ np.random.default_rng(1).normal(size=(4, 4)) + 3
    z = np.c_[z, z[:, 0] * 2]
    train, test = kmeans.whitened(z[:300], z[300:])
    assert train.shape == (300, 4)
    np.testing.assert_allclose(train.mean(0), 0, atol=1e-9)
    np.testing.assert_allclose(train.T @ train / 300, np.eye(4), atol=1e-9)
    both = kmeans.whitened(z[:300], z)[1]
    np.testing.assert_allclose(both, np.r_[train, test], atol=1e-9)


def test_clusters_are_named_one_to_one_in_the_best_way():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    assert kmeans.clustering_accuracy((labels + 1) % 3, labels) == 1
    assert kmeans.clustering_accuracy(np.array([5, 5, 5, 5, 5, 0, 0, 9]), labels) == 5 / 8
    assert kmeans.clustering_accuracy(np.zeros(8, int), labels) == 3 / 8


class Codes(Model):
    """One-hot codes of the classes with noise, of which there is less where they are asked for."""

    def __init__(self, labels, noise):
        super().__init__((8, 8, 1))
        self._codes = {
            len(each): np.eye(10)[each] + noise * normal(len(each), 0, 10) for each in labels
        }

    def encode(self, x):
        return self._codes[len(x)].astype(np.float32)


@pytest.mark.parametrize("metric", ["linear_probe", "kmeans"])
def test_classes_of_the_embedding_are_found_and_lost_under_noise(digits, metric):
    train, test, *labels = digits
    accuracies = []
    for noise in (0.02, 0.5, 50):
        ctx = context(train, test, Codes(labels, noise), labels)
        values = runner.run([metric], ctx)
        accuracies.append(values[f"{metric}/accuracy"])
        assert values[f"{metric}/pca"] > 0.4
    assert accuracies[0] > 0.99 > accuracies[1] > 0.3 > 0.2 > accuracies[2]


@pytest.mark.parametrize("metric", ["linear_probe", "kmeans"])
@pytest.mark.parametrize("labels", [None, np.linspace(0, 1, 20, dtype=np.float32)])
def test_data_without_classes_are_refused(metric, labels):
    ctx = context(normal(20, 0), normal(20, 1), Model(), (labels, labels))
    with pytest.raises(UserError, match=f"Metric '{metric}' needs a class for every example"):
        runner.run([metric], ctx)


def test_classes_that_the_training_set_lacks_are_reported():
    labels = np.repeat([0, 1], 10), np.repeat([1, 2], 10)
    ctx = context(normal(20, 0), normal(20, 1), Model(), labels)
    with pytest.raises(UserError, match="they have 2 and 3 in all"):
        runner.run(["kmeans"], ctx)


def test_diverged_latents_are_reported():
    model = Model(own=lambda num, seed: np.full((num, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="latents of prior 'own' hold NaN"):
        runner.run(["energy"], context(normal(9, 0), normal(9, 1), model))
