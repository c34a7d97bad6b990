"""Distances between sets of features against their published definitions, and on real images."""

import functools
import types

import numpy as np
import pytest
from scipy import ndimage
from sklearn.datasets import load_digits

from pmjax import plugins
from pmjax.benchmarks import evaluation
from pmjax.datasets.base import Dataset
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals import frechet, image_sets, registry, runner
from pmjax.evals.context import Context
from pmjax.evals.features import efficientnet_lite0, inception_2015, inception_weights
from pmjax.evals.features.base import Features, extract_features
from pmjax.evals.metrics import kd, prdc
from tests.evals.moments_distance import frechet_distance, gaussian

inception_score = plugins.load("metrics", "is").inception_score  # `is` is a keyword
KS = {"neighbours": 3, "density_neighbours": 5}


def normal(seed, num, dim, scale=1.0, shift=0.0):
    return (np.random.default_rng(seed).normal(size=(num, dim)) * scale + shift).astype(np.float32)


def frechet_of(a, b):
    return frechet.frechet_estimate(frechet.Sample(a), frechet.Sample(b))


# The Fréchet distance


def test_frechet_distance_of_2048_dimensions_has_its_closed_form():
    rng = np.random.default_rng(0)
    v = rng.normal(size=2048)
    basis = np.eye(2048) - 2 * np.outer(v, v) / (v @ v)  # the eigenvectors of both
    variances1 = np.r_[np.ones(700), np.logspace(0, -20, 700), np.zeros(648)]
    variances2 = np.r_[np.full(400, 4.0), np.logspace(-20, 0, 1000), np.zeros(300), np.ones(348)]
    mean1, mean2 = rng.normal(size=(2, 2048)) * 0.1
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((variances1**0.5 - variances2**0.5) ** 2)
    cov1, cov2 = ((basis * variances) @ basis for variances in (variances1, variances2))
    distance = frechet_distance(mean1, cov1, mean2, cov2)
    assert distance == pytest.approx(expected, rel=1e-6)


def test_statistics_of_other_features_are_refused():
    moments = [gaussian(normal(0, 20, dim)) for dim in (3, 4)]
    with pytest.raises(UserError, match="3 and of 4 dimensions"):
        frechet_distance(*moments[0], *moments[1])


@pytest.mark.parametrize("num", [30, 500], ids=["rank-deficient", "full rank"])
def test_the_estimate_is_the_distance(num):
    a, b = normal(0, num, 60), normal(1, 400, 60, 1.5)
    expected = frechet_distance(*gaussian(a), *gaussian(b))
    assert frechet_of(a, b)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dim", [4, 40, pytest.param(150, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("scale", "shift"), [(1.3, 0.0), (1.0, 0.3)], ids=["scale", "shift"])
def test_the_frechet_spread_is_the_deviation_over_draws(dim, scale, shift, monkeypatch):
    monkeypatch.setattr(frechet, "ENOUGH", 90)
    monkeypatch.setattr(frechet, "BLOCK", 40)
    decay = np.arange(1, dim + 1) ** -0.7
    draws = np.array(
        [
            frechet_of(
                normal(2 * i, 120, dim, scale * decay, shift), normal(2 * i + 1, 200, dim, decay)
            )
            for i in range(80)
        ]
    )
    assert draws[:, 1].mean() == pytest.approx(draws[:, 0].std(), rel=0.25)


def test_features_in_parts_give_the_same_as_all_at_once(monkeypatch):
    monkeypatch.setattr(frechet, "ENOUGH", 300)  # of which every third is then kept
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(900, 5)), rng.normal(1, 2, size=(400, 5))
    parts = frechet.Sample.of_parts(np.split(x, [7, 300, 301]), 900)
    np.testing.assert_array_equal(parts.features, x[::3])
    whole, fixed = frechet.Sample(x), frechet.Sample.of_moments(*gaussian(y), 400)
    value, spread = frechet.frechet_estimate(parts, fixed)
    assert value == pytest.approx(frechet.frechet_estimate(whole, fixed)[0], rel=1e-9)
    draws = [
        frechet.frechet_estimate(frechet.Sample(rng.normal(size=(900, 5))), fixed)[0]
        for _ in range(200)
    ]
    assert spread == pytest.approx(np.std(draws), rel=0.3)


def test_constant_features_have_a_distance_and_no_spread():
    for num in (3, 30):
        zeros, ones = (np.full((num, 5), value, np.float32) for value in (0, 1))
        assert frechet_of(zeros, ones) == (5, 0)
    with pytest.raises(UserError, match="two examples"):
        frechet_of(zeros, ones[:1])


def test_the_frechet_spread_of_a_floor_errs_on_the_safe_side():
    draws = np.array(
        [frechet_of(normal(2 * i, 200, 8), normal(2 * i + 1, 200, 8)) for i in range(99)]
    )
    assert 1 < draws[:, 1].mean() / draws[:, 0].std() < 1.8


def test_extrapolation_removes_the_bias_of_few_samples():
    dim, reference = 20, frechet.Sample(normal(0, 20_000, 20))
    truth = dim * 0.3**2 + dim * (1.2 - 1) ** 2
    draws = [normal(1 + i, 300, dim, 1.2, 0.3) for i in range(10)]
    plain = np.mean([frechet.frechet_estimate(frechet.Sample(x), reference)[0] for x in draws])
    extrapolated = np.array(
        [frechet.frechet_infinity(x, reference, points=15, seed=0) for x in draws]
    )
    assert plain > 1.1 * truth
    assert extrapolated[:, 0].mean() == pytest.approx(truth, abs=0.3 * (plain - truth))
    assert extrapolated[:, 1].mean() == pytest.approx(extrapolated[:, 0].std(), rel=0.6)


@pytest.mark.parametrize(("num", "points"), [(300, 2), (19, 3), (30, 29)])
def test_extrapolation_refuses_what_gives_no_line(num, points):
    reference = frechet.Sample(normal(0, 50, 3))
    with pytest.raises(UserError, match="A line cannot be fitted.*: set points to at least 3"):
        frechet.frechet_infinity(normal(1, num, 3), reference, points=points, seed=0)


# The kernel distance


def mmd2(x, y):
    """The unbiased estimate, term by term (Gretton et al., 2012, equation 3)."""
    x, y = x.astype(np.float64), y.astype(np.float64)

    def k(a, b):
        return (sum(a * b) / len(a) + 1) ** 3

    m, n = len(x), len(y)
    first = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    second = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return first + second - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_the_kernel_distance_agrees_with_its_definition(scale):
    x, y = normal(0, 40, 6, scale), normal(1, 40, 6)
    found = kd.kernel_distances(y, {"x": x}, subset_size=40, subsets=2, seed=0)["x"]
    assert found == pytest.approx((mmd2(x, y), 0), rel=1e-6, abs=1e-12)  # subsets are all there is


def test_the_kernel_distance_averages_subsets_without_bias():
    x, y = normal(0, 80, 6, 1.2), normal(1, 70, 6)
    mean, deviation = kd.kernel_distances(y, {"x": x}, subset_size=20, subsets=1000, seed=0)["x"]
    assert mean == pytest.approx(mmd2(x, y), abs=4 * deviation / np.sqrt(1000))
    halved = kd.kernel_distances(y, {"x": x}, subset_size=40, subsets=1000, seed=0)["x"]
    assert 0.3 * deviation < halved[1] < 0.75 * deviation


def test_a_kernel_distance_does_not_depend_on_the_sets_beside_it():
    sets = {"a": normal(0, 50, 3), "b": normal(1, 60, 3)}
    args = {"subset_size": 20, "subsets": 3, "seed": 0}
    both = kd.kernel_distances(normal(2, 40, 3), sets, **args)
    assert kd.kernel_distances(normal(2, 40, 3), {"b": sets["b"]}, **args)["b"] == both["b"]


@pytest.mark.parametrize(("subset_size", "subsets"), [(1, 5), (51, 5), (20, 0)])
def test_subsets_that_cannot_be_drawn_are_refused(subset_size, subsets):
    sets = {"x": normal(0, 50, 3)}
    with pytest.raises(UserError, match="cannot be drawn from 50: set subset_size"):
        kd.kernel_distances(
            normal(1, 60, 3), sets, subset_size=subset_size, subsets=subsets, seed=0
        )


# Precision, recall, density, coverage


def manifold_of(features):
    return prdc.Manifold(features, **KS)


def published(real, fake):
    """Kynkäänniemi et al., 2019, equations 1 and 2; Naeem et al., 2020, equations 4 and 5."""
    real, fake = real.astype(np.float64), fake.astype(np.float64)

    def distance(a, b):
        return np.sqrt(np.sum((a - b) ** 2))

    def radius(i, points, k):  # the first distance is 0, to itself
        return sorted(distance(points[i], other) for other in points)[k]

    def inside(point, points, k):
        return any(distance(point, p) <= radius(i, points, k) for i, p in enumerate(points))

    balls = [radius(i, real, 5) for i in range(len(real))]
    hits = np.array(
        [[distance(r, f) < ball for f in fake] for r, ball in zip(real, balls, strict=True)]
    )
    return {
        "precision": np.mean([inside(f, real, 3) for f in fake]),
        "recall": np.mean([inside(r, fake, 3) for r in real]),
        "density": hits.sum() / (5 * len(fake)),
        "coverage": hits.any(1).mean(),
    }


@pytest.mark.parametrize(
    ("scale", "shift", "mean"), [(1.0, 0.7, 0), (0.5, 0.0, 0), (1.5, 1.0, 0), (1.0, 0.7, 1e8)]
)
def test_precision_recall_density_and_coverage_agree_with_their_definitions(
    scale, shift, mean, monkeypatch
):
    monkeypatch.setattr(prdc, "BLOCK", 16)
    real, fake = (
        x.astype(np.float64) + mean for x in (normal(0, 40, 5), normal(1, 25, 5, scale, shift))
    )
    values = prdc.prdc(manifold_of(real), manifold_of(fake))
    assert values == pytest.approx(published(real, fake), abs=1e-9)
    assert 0 < values["coverage"] < 1 and values["recall"] > 0


def test_prdc_of_a_set_and_itself_is_perfect_and_of_a_far_one_nothing():
    real = normal(0, 200, 5, shift=10)
    itself = prdc.prdc(manifold_of(real), manifold_of(real))
    assert [itself[name] for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert itself["density"] == pytest.approx(1, abs=0.21)  # its ties are at the balls' edges
    far = prdc.prdc(manifold_of(real), manifold_of(real + 100))
    assert list(far.values()) == [0, 0, 0, 0]


def test_the_spread_of_prdc_is_about_the_deviation_over_draws():
    draws = [
        prdc.prdc_estimate(
            manifold_of(normal(2 * i, 500, 3)), manifold_of(normal(2 * i + 1, 500, 3, 1.3)), seed=0
        )
        for i in range(30)
    ]
    for name in ("precision", "recall", "density", "coverage"):
        values, spreads = np.array([draw[name] for draw in draws]).T
        assert 0.6 < spreads.mean() / values.std() < 1.7, name


def test_neighbours_beyond_the_examples_are_refused():
    with pytest.raises(UserError, match="set neighbours and density_neighbours"):
        prdc.Manifold(normal(0, 5, 3), **KS)
    with pytest.raises(UserError, match="take 100 at least"):
        prdc.prdc_estimate(manifold_of(normal(0, 99, 3)), manifold_of(normal(1, 200, 3)), seed=0)


# The Inception Score


def test_the_inception_score_agrees_with_its_definition():
    logits = normal(0, 60, 7, 2)
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    divergence = sum(np.sum(q * (np.log(q) - np.log(p.mean(0)))) for q in p) / 60
    found = inception_score(logits, splits=1, seed=0)
    assert found == pytest.approx((np.exp(divergence), 0), rel=1e-6)


def test_the_inception_score_of_certain_classes_is_their_number():
    logits = np.repeat(np.eye(5) * 2000, 40, axis=0)  # the other classes' probabilities underflow
    assert inception_score(logits, splits=1, seed=0) == pytest.approx((5, 0))
    mean, deviation = inception_score(logits, splits=4, seed=0)
    assert 4.5 < mean < 5 and 0 < deviation < 0.3
    assert inception_score(logits[:1], splits=1, seed=0) == (1, 0)


def test_more_parts_than_images_are_refused():
    with pytest.raises(UserError, match="3 images cannot be divided into 4 parts: set splits"):
        inception_score(np.zeros((3, 5)), splits=4, seed=0)


# On images


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    return (images * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1), labels


def context(train, test, num_samples, **priors):
    """A context whose model is the identity and whose priors draw from given images."""

    def sample(num, *, seed, prior):
        chosen = np.random.default_rng(seed).permutation(len(priors[prior]))[:num]
        return to_float(priors[prior][chosen])

    model = types.SimpleNamespace(
        encode=lambda x: to_float(np.asarray(x)).reshape(len(x), -1),
        decode=lambda z: z.reshape(-1, *test.shape[1:]),
        reconstruct=lambda x: to_float(np.asarray(x)),
        sample=sample,
        sample_latent=lambda num, **args: sample(num, **args).reshape(num, -1),
    )
    data = [types.SimpleNamespace(data=x, labels=None, fingerprint="") for x in (train, test)]
    return Context(model, *data, priors=tuple(priors), num_samples=num_samples)


FAMILIES = ("fd", "kd", "fd_infinity", "prdc")
KINDS = ("blur", "noise", "modes")
LEVELS = ((0.5, 25, 6), (0.8, 60, 2), (1.2, 120, 1))  # pixels, gray levels, classes that are left


def degraded_sets(images, labels, levels=LEVELS):
    """Returns real images as 'clean', and blurred, noisy and fewer kinds, at three levels each."""
    sets, rng = {"clean": images}, np.random.default_rng(0)
    for i, (blur, noise, classes) in enumerate(levels, start=1):
        noisy = np.clip(images + rng.normal(0, noise, images.shape), 0, 255).astype(np.uint8)
        sets[f"blur{i}"] = ndimage.gaussian_filter(images, (0, blur, blur, 0))
        sets |= {f"noise{i}": noisy, f"modes{i}": images[labels < classes]}
    return sets


def by_level(values, key, kind):
    """Returns the values of clean images and of one kind's levels, <what> being {} in the key."""
    return [values[key.format(what)] for what in ("clean", *(f"{kind}{i}" for i in (1, 2, 3)))]


@pytest.fixture(scope="module")
def mixed_digits(digits):
    """The digits in random order: their own is that of their writers."""
    order = np.random.default_rng(0).permutation(len(digits[0]))
    return digits[0][order], digits[1][order]


@pytest.fixture(scope="module")
def degraded(mixed_digits):
    """The metrics of clean, blurred, noisy and fewer images against a test set of digits."""
    images, labels = mixed_digits
    sets = degraded_sets(images[600:], labels[600:])
    ctx = context(images[:300], images[300:600], 110, **sets)
    args = {f"{family}_efficientnet_lite0": {"resolution": 32} for family in (*FAMILIES, "is")}
    args["kd_efficientnet_lite0"]["subsets"] = 20
    args["fd_infinity_efficientnet_lite0"]["points"] = 10
    args["is_efficientnet_lite0"]["splits"] = 2
    args |= {"sliced_wasserstein": {}, "energy": {"num": 110, "permutations": 19}}
    return runner.run([*args], ctx, args)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "key",
    [f"{family}_efficientnet_lite0/{{}}" for family in ("fd", "kd", "fd_infinity")]
    + ["sliced_w2/{}", "energy/{}"],
)
def test_distances_grow_with_blur_noise_and_lost_classes(degraded, key, kind):
    values = by_level(degraded, key, kind)
    assert np.all(np.diff(values) > 0), values


@pytest.mark.parametrize(
    ("quantity", "kinds"),
    [("prdc/precision", ("noise",)), ("prdc/density", ("blur", "noise")), ("prdc/recall", KINDS),
     ("prdc/coverage", KINDS), ("is", KINDS)],
)  # fmt: skip
def test_scores_fall_with_what_they_measure(degraded, quantity, kinds):
    metric, *rest = quantity.split("/")
    for kind in kinds:
        key = "/".join([f"{metric}_efficientnet_lite0", *rest, "{}"])
        values = by_level(degraded, key, kind)
        assert np.all(np.diff(values) < 0), (kind, values)


def test_lost_classes_cost_recall_and_not_precision(degraded):
    clean, lost = (
        {q: degraded[f"prdc_efficientnet_lite0/{q}/{what}"] for q in ("precision", "recall")}
        for what in ("clean", "modes3")
    )
    assert lost["recall"] < 0.5 * clean["recall"]
    assert lost["precision"] > 0.8 * clean["precision"]


def test_other_real_images_reproduce_the_floor_within_its_spread(degraded):
    floors = [key for key in degraded if key.endswith("/floor") and f"{key}/spread" in degraded]
    assert len(floors) == 3 + 4 + 1
    for key in floors:
        clean = key.removesuffix("floor") + "clean"
        spread = np.hypot(degraded[f"{key}/spread"], degraded[f"{clean}/spread"])
        # Of eight values one may be two spreads off.
        assert abs(degraded[clean] - degraded[key]) < 3 * spread, key


def test_identical_sets_have_no_distance(degraded):
    assert degraded["fd_efficientnet_lite0/recon"] == pytest.approx(0, abs=1e-6)
    floor = degraded["fd_efficientnet_lite0/floor"]
    assert degraded["fd_efficientnet_lite0/recon_train"] == pytest.approx(floor)
    distance, spread = (degraded[f"kd_efficientnet_lite0/recon{end}"] for end in ("", "/spread"))
    assert abs(distance) < 2 * spread < 0.1 * degraded["kd_efficientnet_lite0/noise3"]


@pytest.mark.parametrize("metric", [*(f"{f}_efficientnet_lite0" for f in (*FAMILIES, "is")),
                                    "sliced_wasserstein"])  # fmt: skip
def test_a_set_that_is_given_twice_is_perfect(mixed_digits, metric):
    images = mixed_digits[0][:128]
    same = types.SimpleNamespace(data=images, fingerprint="")
    ctx = Context.from_images(images, same, more=same)
    args = {} if metric == "sliced_wasserstein" else {"resolution": 32}
    args |= {"subsets": 20} if metric.startswith("kd") else {}
    values = runner.run([metric], ctx, {metric: args})
    for key in [key for key in values if key.endswith("/samples")]:
        value = values[key]
        assert value == pytest.approx(values[key.replace("samples", "floor")], rel=1e-6)
        if metric.startswith("prdc"):  # density's ties are at the balls' edges
            assert value == pytest.approx(1, abs=0.2 if "density" in key else 0)
        elif not metric.startswith("is"):
            # Subsets of one set overlap, so that what has no bias else is below 0.
            negative = metric.startswith(("kd", "fd_infinity"))
            assert value < 1e-5 and (negative or value >= 0)


def test_real_images_reproduce_a_floor_that_is_split_off_the_reference(mixed_digits):
    images = mixed_digits[0]
    reference, more = image_sets.split(Dataset(images[100:500], None, "", ()), 100, seed=0)
    args = {f"{family}_efficientnet_lite0": {"resolution": 32} for family in FAMILIES}
    args["kd_efficientnet_lite0"]["subsets"] = 20
    args["fd_infinity_efficientnet_lite0"]["points"] = 5
    values = runner.run([*args], Context.from_images(images[:100], reference, more=more), args)
    keys = [key for key in values if key.endswith("/samples")]
    assert len(keys) == 3 + 4
    for key in keys:
        floor = key.replace("samples", "floor")
        spread = np.hypot(values[f"{key}/spread"], values[f"{floor}/spread"])
        assert abs(values[key] - values[floor]) < 3 * spread, key


@pytest.fixture(scope="module")
def degraded_inception(mixed_digits):
    """FID and KID like `degraded`, of Inception's graph with random weights and an eighth as wide.

    Its features see little of noise.
    """
    rng, params = np.random.default_rng(0), {}
    for name, (height, width, channels, out) in evaluation.kernel_shapes().items():
        shape = height, width, channels if channels == 3 else channels // 8, out // 8
        scale = np.float32(np.sqrt(2 / np.prod(shape[:3])))
        kernel = rng.standard_normal(shape, np.float32) * scale
        params[name] = kernel, rng.uniform(-0.1, 0.1, out // 8).astype(np.float32)
    images, labels = mixed_digits
    sets = degraded_sets(images[600:], labels[600:], ((0.5, 10, 5), (0.8, 20, 2), (1.2, 40, 1)))
    sets = {name: each[:70] for name, each in sets.items()}
    more, test = (
        types.SimpleNamespace(data=x, fingerprint="") for x in (images[300:370], images[:150])
    )
    args = {"num_samples": 70, "sets": sets, "extractors": {"inception_2015": {"batch_size": 72}}}
    ctx = Context(None, more, test, tuple(sets), **args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception_weights, "find", lambda path: path)
        patch.setattr(inception_2015, "load_params", lambda *_: (params, None, "random"))
        patch.setattr(inception_2015, "DIM", 2048 // 8)
        patch.setattr(inception_2015, "SIDE", 107)  # pixels, the least that the graph takes
        return runner.run(["fid", "kid"], ctx, {"kid": {"subsets": 20}})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("key", ["fid/70_samples/pytorch_fid/{}", "kid/{}"])
def test_fid_and_kid_grow_with_blur_noise_and_lost_classes(degraded_inception, key, kind):
    values = by_level(degraded_inception, key, kind)
    assert np.all(np.diff(values) > 0), values
    floor, spread = (degraded_inception[key.format(f"floor{end}")] for end in ("", "/spread"))
    assert abs(values[0] - floor) < 3 * spread


@pytest.fixture(scope="module")
def degraded_ring():
    """Distances of clean, noisy, shrunken and fewer clusters on a ring, all of one size."""

    def ring(num, seed, *, noise=0.0, shrink=0.0, clusters=8):
        rng = np.random.default_rng(seed)
        angles = 2 * np.pi * (np.arange(num) % clusters) / 8
        x = np.stack([np.cos(angles), np.sin(angles)], 1) + 0.05 * rng.normal(size=(num, 2))
        x = x * (1 - shrink) + noise * rng.normal(size=(num, 2))
        return rng.permutation(x).astype(np.float32)

    priors = {"clean": ring}
    for i, (noise, shrink, clusters) in enumerate(
        ((0.1, 0.1, 6), (0.2, 0.25, 3), (0.5, 0.6, 1)), start=1
    ):
        priors[f"noise{i}"] = functools.partial(ring, noise=noise)
        priors[f"shrink{i}"] = functools.partial(ring, shrink=shrink)
        priors[f"modes{i}"] = functools.partial(ring, clusters=clusters)

    def sample(num, *, seed, prior):
        return priors[prior](num, seed)

    model = types.SimpleNamespace(encode=lambda x: x, sample=sample, sample_latent=sample)
    data = [types.SimpleNamespace(data=ring(500, seed), labels=None) for seed in (1, 2)]
    ctx = Context(model, *data, priors=tuple(priors), num_samples=400, fresh=ring)
    args = {
        "wasserstein": {"draws": 2, "num": 300}, "sinkhorn": {"draws": 2, "num": 200},
        "sliced_wasserstein": {}, "energy": {"num": 400, "permutations": 19},
        "c2st": {"num": 400, "classifier": "knn"},
    }  # fmt: skip
    return runner.run([*args], ctx, args)


@pytest.mark.parametrize("kind", ["noise", "shrink", "modes"])
@pytest.mark.parametrize("metric", ["w2", "sinkhorn", "sliced_w2", "energy", "c2st"])
def test_distances_of_points_grow_with_noise_shrinking_and_lost_clusters(
    degraded_ring, metric, kind
):
    values = by_level(degraded_ring, f"{metric}/{{}}", kind)
    assert np.all(np.diff(values) > 0), values
    floor = degraded_ring[f"{metric}/{'train' if metric in ('energy', 'c2st') else 'floor'}"]
    assert abs(values[0] - floor) < 0.5 * (values[2] - floor), (floor, values)


def test_midpoints_are_further_than_reconstructions(degraded):
    for family in ("fd", "kd"):
        distances = [degraded[f"{family}_efficientnet_lite0/{w}"] for w in ("floor", "midpoints")]
        assert distances[0] < 0.7 * distances[1]


def test_caveats_of_few_images_are_flagged(degraded):
    assert {key: value for key, value in degraded.items() if "/flag/" in key} == {
        "fd_efficientnet_lite0/flag/fewer_images_than_features": 110,
        "kd_efficientnet_lite0/flag/subset_size": 55,
        "fd_infinity_efficientnet_lite0/flag/fewer_images_than_features": 11,
        "is_efficientnet_lite0/flag/fewer_images_than_classes": 55,
    }


@pytest.fixture
def cheap_features(monkeypatch):
    """Features that cost nothing: 16 pixels; in `calls`, how many images they are of."""
    calls = []

    def stream(images, **_):
        for part in [images] if hasattr(images, "shape") else images:
            calls.append(len(part))
            yield part.reshape(len(part), -1)[:, 20:36].astype(np.float32)

    monkeypatch.setattr(efficientnet_lite0, "stream", stream)
    monkeypatch.setattr(efficientnet_lite0, "logits", lambda x, **_: x[:, :5] / 99)
    monkeypatch.setattr(efficientnet_lite0, "DIM", 16)
    return calls


@pytest.mark.parametrize("family", [*FAMILIES, "is"])
def test_a_floor_smaller_than_the_samples_is_flagged(digits, cheap_features, family, caplog):
    metric = f"{family}_efficientnet_lite0"
    args = {"splits": 2} if family == "is" else {}
    small = context(digits[0][:100], digits[0][200:400], 120, own=digits[0])
    values = runner.run([metric], small, {metric: args})
    assert values[f"{metric}/flag/floor_images"] == 100
    line = f"{metric}: the floor has 100 images, fewer than the 120 samples"
    runner.run([metric], small, {metric: args})
    assert caplog.text.count(line) == 1
    enough = context(digits[0][:120], digits[0][200:400], 120, own=digits[0])
    assert f"{metric}/flag/floor_images" not in runner.run([metric], enough, {metric: args})


def test_fd_by_protocol_has_its_name_in_the_keys_and_fid_s_sets(digits, cheap_features):
    ctx = context(digits[0][:300], digits[0][300:500], 100, own=digits[0])
    plain = runner.run(["fd_efficientnet_lite0"], ctx)
    named = runner.run(
        ["fd_efficientnet_lite0"],
        ctx,
        {"fd_efficientnet_lite0": {"protocols": ("100_test", "250_train")}},
    )
    head = "fd_efficientnet_lite0/"
    for what in ("own", "floor", "recon", "recon_train", "midpoints"):
        # Of equal sets it is round-off: 0, or more where a BLAS sums another order otherwise.
        expected = pytest.approx(plain[head + what], rel=1e-9, abs=1e-9)
        assert named[f"{head}100_test/{what}"] == expected
        if what != "recon":  # equal sets; else the plain distance's reference is a draw, too
            assert named[f"{head}100_test/{what}/spread"] < plain[f"{head}{what}/spread"]
    assert f"{head}250_train/recon_test" in named and f"{head}250_train/own" in named
    assert named[f"{head}250_train/flag/floor_images"] == 200
    with pytest.raises(UserError, match="is not a protocol of FID"):
        runner.run(
            ["fd_efficientnet_lite0"], ctx, {"fd_efficientnet_lite0": {"protocols": ("50k",)}}
        )


def test_fd_takes_statistics_of_its_features(digits, cheap_features, tmp_path):
    real, samples = digits[0][:150], digits[0][150:270]
    x = extract_features(efficientnet_lite0, real).astype(np.float64)
    np.savez(tmp_path / "s.npz", mu=x.mean(0), sigma=np.cov(x.T))
    given = runner.run(["fd_efficientnet_lite0"], Context.from_images(samples, tmp_path / "s.npz"))
    assert list(given) == [f"fd_efficientnet_lite0/samples{end}" for end in ("", "/spread")]
    data = types.SimpleNamespace(data=real, fingerprint="")
    whole = runner.run(["fd_efficientnet_lite0"], Context.from_images(samples, data))
    key = "fd_efficientnet_lite0/samples"
    assert given[key] == pytest.approx(whole[key], rel=1e-9)
    np.savez(tmp_path / "fid.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match="another extractor. Try --evals=fid"):
        runner.run(["fd_efficientnet_lite0"], Context.from_images(samples, tmp_path / "fid.npz"))


def test_a_protocol_s_reference_is_cached_between_two_runs(
    digits, cheap_features, tmp_path, monkeypatch
):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path))
    args = {"fd_efficientnet_lite0": {"protocols": ("50_test",)}}
    found = []
    for _ in range(2):
        ctx = context(digits[0][:60], digits[0][60:200], 90, own=digits[0])
        ctx.test.fingerprint = "digits"
        cheap_features.clear()
        found.append(runner.run(["fd_efficientnet_lite0"], ctx, args))
        # Reference, own, floor, recon, recon_train and midpoints; then without the reference.
        assert sorted(cheap_features) == [50] * 4 + [140] * (3 - len(found))
    assert found[0] == found[1]


def test_the_classifier_score_is_of_imagenet_s_probabilities(digits, monkeypatch):
    ctx = context(digits[0][:40], digits[0][40:60], 30, own=digits[0])
    metric = "is_efficientnet_lite0"
    values = runner.run([metric], ctx, {metric: {"splits": 1, "resolution": 32}})
    features = extract_features(efficientnet_lite0, ctx.samples("own"), resolution=32)
    expected = inception_score(efficientnet_lite0.logits(features), splits=1, seed=0)
    assert values[f"{metric}/own"] == pytest.approx(expected[0], rel=1e-5)
    assert values[f"{metric}/flag/fewer_images_than_classes"] == 30
    assert 1 < values[f"{metric}/floor"] < 30
    table, details = registry.table_of(metric)
    assert (table.prefix, details) == ("is", "efficientnet_lite0")
    assert registry.direction(f"{metric}/own") == 1


def test_midpoints_are_between_two_test_images():
    test = np.uint8([0, 40, 100]).reshape(3, 1, 1, 1) * np.ones((1, 4, 4, 1), np.uint8)
    ctx = context(test, test, 200, own=test)
    parts = list(ctx.midpoints(1200))
    assert [len(part) for part in parts] == [1000, 200]
    assert set(np.concatenate(parts)[:, 0, 0, 0]) == {20, 50, 70}
    with pytest.raises(UserError, match="two test examples"):
        next(context(test, test[:1], 5, own=test).midpoints(3))


def test_features_that_are_not_finite_are_refused(digits, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "stream", lambda x, **_: [np.full((len(x), 4), np.nan)])
    ctx = context(digits[0][:100], digits[0][100:200], 100, own=digits[0])
    for family in FAMILIES:
        with pytest.raises(UserError, match="features of 'test' hold NaN"):
            runner.run([f"{family}_efficientnet_lite0"], ctx)


def test_features_of_all_sources_are_of_the_images_named(digits):
    train, test = digits[0][:40], digits[0][40:60]
    ctx = context(train, test, 30, own=train)
    for source, images in {
        "test": test,
        "train": train[ctx.subset("train")],
        "recon": test,
        "recon_train": train[ctx.subset("train")],
        "own": ctx.samples("own"),
    }.items():
        expected = extract_features(efficientnet_lite0, images, resolution=32)
        found = Features(ctx, "efficientnet_lite0", resolution=32).of(source)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
