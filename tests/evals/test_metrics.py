"""Every metric on small models with known answers, against independent references."""

import importlib
import types

import numpy as np
import ot
import pytest
import scipy.linalg
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import pdist, squareform
from sklearn.datasets import load_digits
from sklearn.manifold import Isomap

from pmjax import plugins
from pmjax.datasets import swiss_roll
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals import context as context_module
from pmjax.evals import registry, runner, tables
from pmjax.evals.base import PARTS
from pmjax.evals.context import CHUNK, DEPENDS, Context, Unfit, fresh_points
from pmjax.evals.features import efficientnet_lite0, inception_2015
from pmjax.evals.features.base import Features, extract_features, images_of
from pmjax.evals.metrics import reconstruction, topology, wasserstein

# On features, one extractor suffices.
METRICS = [
    name
    for name in registry.names()
    if name in registry.ALIASES
    or not (name.endswith("inception_2015") or registry.find(name).takes_extractor)
]
INCEPTION_METRICS = {"fid", "fid_infinity", "kid", "prdc", "inception_score"}
IMAGE_METRICS = {"classes"} | INCEPTION_METRICS
IMAGE_METRICS |= {name for name in METRICS if name.endswith("efficientnet_lite0")}
POINT_METRICS = {"wasserstein", "sinkhorn"}
LABEL_METRICS = {"linear_probe", "kmeans"}
ALIASES = {"memorisation"}
ONE_SET_METRICS = {"lines", "swiss_roll"}  # for the data set of this name


def split(data, labels=None):
    return types.SimpleNamespace(data=data, labels=labels, fingerprint="", skipped=())


class Model:
    """The identity, with priors that draw from given data or functions of (num, seed)."""

    def __init__(self, shape, **priors):
        self.shape, self.priors = shape, priors

    def encode(self, x):
        return np.asarray(to_float(np.asarray(x)), np.float32).reshape(len(x), -1)

    def decode(self, z):
        return z.reshape(-1, *self.shape)

    def reconstruct(self, x):
        return self.decode(self.encode(x))

    def sample_latent(self, num, *, seed, prior=None):
        return self.encode(self.sample(num, seed=seed, prior=prior))

    def sample(self, num, *, seed, prior=None):
        source = self.priors[prior]
        if callable(source):
            return source(num, seed)
        chosen = np.random.default_rng(seed).integers(len(source), size=num)
        return np.asarray(to_float(source[chosen]), np.float32)


def context(train, test, *, labels=(None, None), model=None, priors=None, **args):
    model = model or Model(test.shape[1:], own=train)
    return Context(
        model=model,
        train=split(train, labels[0]),
        test=split(test, labels[1]),
        priors=tuple(model.priors) if priors is None else priors,
        **args,
    )


def normal_points(num, seed, dim=3):
    return np.random.default_rng(seed).normal(size=(num, dim)).astype(np.float32)


def point_context(**args):
    return context(normal_points(60, 0), normal_points(60, 1), **args)


@pytest.fixture(scope="module")
def digits():
    images, labels = load_digits(return_X_y=True)
    images = (images * 15.9).astype(np.uint8).reshape(-1, 8, 8, 1)
    return images[:1000], labels[:1000], images[1000:], labels[1000:]


@pytest.mark.parametrize("name", plugins.names("metrics"))
def test_a_metric_is_a_documented_function_of_a_context(name):
    function = plugins.load("metrics", name).evaluate
    assert function.__doc__
    assert next(iter(function.__annotations__.values())) is Context


@pytest.fixture
def pixels_for_inception(monkeypatch):
    """Some pixels in place of features that need a file of weights."""

    def stream(images, **_):
        for part in [images] if hasattr(images, "shape") else images:
            yield part.reshape(len(part), -1)[:, ::5].astype(np.float32)

    monkeypatch.setattr(inception_2015, "stream", stream)
    monkeypatch.setattr(inception_2015, "DIM", 13)
    monkeypatch.setattr(inception_2015, "identity", lambda **_: {"variant": "pytorch_fid"})
    monkeypatch.setattr(inception_2015, "logits", lambda features, **_: features[:, :5] / 99)


@pytest.fixture
def pixels_for_efficientnet(monkeypatch):
    """Pixels in place of features that take time."""

    def stream(images, **_):
        for part in [images] if hasattr(images, "shape") else images:
            yield part.reshape(len(part), -1).astype(np.float32)

    monkeypatch.setattr(efficientnet_lite0, "stream", stream)
    monkeypatch.setattr(efficientnet_lite0, "logits", lambda features, **_: features[:, :50] / 99)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_gives_finite_numbers_or_says_that_the_data_do_not_fit(
    name, digits, pixels_for_inception, pixels_for_efficientnet
):
    train, train_labels, test, test_labels = digits
    labels = (train_labels[:200], test_labels[:200])
    model = Model((8, 8, 1), own=train[:200], knn_jitter=train[:200])
    images = context(train[:200], test[:200], labels=labels, model=model, num_samples=100)
    points = Model((3,), own=normal_points, knn_jitter=normal_points)
    for ctx, refused in (
        (images, POINT_METRICS),
        (point_context(model=points, num_samples=50), IMAGE_METRICS | LABEL_METRICS),
    ):
        if name in refused | ONE_SET_METRICS:
            with pytest.raises(UserError, match=f"Metric '{name}' needs"):
                runner.run([name], ctx)
        else:
            values = runner.run([name], ctx)
            assert values and all(isinstance(value, float) for value in values.values())


def test_metrics_run_in_order_with_a_line_each(caplog):
    values = runner.run(["topology", "latent", "reconstruction"], point_context())
    assert [line.split()[1] for line in caplog.messages] == ["topology", "latent", "reconstruction"]
    assert list(values)[0].startswith("topology/") and list(values)[-1] == "recon/mse"


def test_an_unknown_metric_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'topology'"):
        runner.run(["latent", "topolgy"], point_context())


def test_an_unknown_argument_is_refused_with_the_nearest_before_anything_is_computed(caplog):
    with pytest.raises(UserError, match="Did you mean 'neighbours'"):
        runner.run(["latent", "topology"], point_context(), {"topology": {"neighbors": 3}})
    assert not caplog.messages


def test_arguments_reach_their_metric():
    with pytest.raises(UserError, match="topology.neighbours=40"):
        runner.run(["topology"], point_context(), {"topology": {"neighbours": 40}})


def of_sizes(name, digits, **sizes):
    """Returns a context of the least numbers of examples of a metric, but for some `sizes`."""
    least = {part: 1 for part in PARTS} | registry.least(name, {})[0] | sizes
    train, train_labels, test, test_labels = digits
    if name in POINT_METRICS:
        train, test = normal_points(60, 0), normal_points(60, 1)
    shape = test.shape[1:]
    return context(
        train[: least["train"]],
        test[: least["test"]],
        labels=(np.arange(least["train"]) % 2, np.arange(least["test"]) % 2),
        model=Model(shape, own=train[-50:], knn_jitter=train[-50:]),
        num_samples=least["samples"],
    )


@pytest.mark.parametrize("name", [n for n in METRICS if n not in ONE_SET_METRICS | ALIASES])
def test_the_least_examples_that_a_metric_declares_are_enough_and_fewer_are_refused(
    name, digits, pixels_for_inception, pixels_for_efficientnet
):
    assert runner.run([name], of_sizes(name, digits))
    for part, num in registry.least(name, {})[0].items():
        with pytest.raises(Unfit, match=f"Metric '{name}' needs at least .*not {num - 1}"):
            runner.run([name], of_sizes(name, digits, **{part: num - 1}))


@pytest.mark.parametrize("num", [0, 5])
def test_few_test_images_leave_out_metrics_and_never_fail_otherwise(
    num, digits, pixels_for_inception, pixels_for_efficientnet
):
    train, train_labels, test, test_labels = digits
    labels, model = (train_labels[:100], test_labels[:num]), Model((8, 8, 1), own=train[:50])
    model.priors["knn_jitter"] = train[:50]
    ctx = context(train[:100], test[:num], labels=labels, model=model, num_samples=20)
    failed = {}
    names = {"reconstruction", "latent", "linear_probe", "topology", "energy", "kid", "fid", "prdc"}
    values = runner.run(sorted(names), ctx, failed=failed)
    assert values and all(isinstance(error, Unfit) for error in failed.values())
    needing = {n for n in names if registry.least(n, {})[0].get("test", 0) > num}
    assert set(failed) == needing


def pixel_context():
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), np.uint8)
    return context(images[:20], images[20:], labels=(np.arange(20) % 2,) * 2, num_samples=18)


@pytest.mark.parametrize(
    ("metric", "args"),
    [
        ("kid", {"subsets": 0}), ("kid", {"subset_size": 0}),
        ("kd_efficientnet_lite0", {"subset_size": 1}), ("fid_infinity", {"points": 1}),
        ("prdc", {"neighbours": 0}), ("prdc", {"density_neighbours": 30}),
        ("prdc_efficientnet_lite0", {"density_neighbours": 3}), ("inception_score", {"splits": 0}),
        ("is_efficientnet_lite0", {"splits": 50}), ("c2st", {"classifier": "tree"}),
        ("c2st", {"num": 3}), ("energy", {"num": 0}), ("energy", {"permutations": 0}),
        ("memorization", {"num": 0}), ("memorization", {"extractor": "vgg"}),
        ("sliced_wasserstein", {"projections": 0}), ("sinkhorn", {"regularisation": 0.0}),
        ("sinkhorn", {"draws": 0}), ("wasserstein", {"num": 0}), ("topology", {"neighbours": 10}),
        ("swiss_roll", {"neighbours": 0}), ("lines", {"frames": 1}), ("kmeans", {"restarts": 0}),
        ("kmeans", {"iterations": 0}), ("linear_probe", {"c": 0.0}),
        ("linear_probe", {"iterations": 0}),
    ],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)  # fmt: skip
def test_what_an_argument_cannot_be_is_told_with_its_whole_flag(
    metric, args, pixels_for_inception, pixels_for_efficientnet
):
    ctx = pixel_context()
    if metric in POINT_METRICS | {"swiss_roll"}:
        ctx = context(*np.split(swiss_roll.points(40, 0)[0], 2))
    with pytest.raises(UserError, match=f"--config.eval.args.{metric}.{next(iter(args))}\\b"):
        registry.validate([metric], {metric: args}, {})
        runner.run([metric], ctx, {metric: args})


@pytest.mark.parametrize(
    ("metric", "flags"),
    [
        ("fd_efficientnet_lite0", ["--config.eval.num_samples"]),
        ("kd_efficientnet_lite0", ["--config.eval.args.kd_efficientnet_lite0.subset_size=9"]),
        ("is_efficientnet_lite0", ["--config.eval.args.is_efficientnet_lite0.splits"]),
        ("fid", ["--protocols"]),
    ],
)
def test_caveats_of_few_images_name_the_flags_that_bear_on_them(
    metric, flags, pixels_for_inception, pixels_for_efficientnet, monkeypatch, caplog
):
    for extractor in (efficientnet_lite0, inception_2015):
        monkeypatch.setattr(extractor, "DIM", 60)
    runner.run([metric], pixel_context())
    assert all(flag in caplog.text for flag in flags), caplog.text


def test_a_value_that_is_not_finite_is_an_error_that_names_the_metric(monkeypatch):
    module = importlib.import_module("pmjax.evals.metrics.latent")
    monkeypatch.setattr(module, "evaluate", lambda ctx: {"latent/var_min": float("nan")})
    with pytest.raises(UserError, match="Metric 'latent' gave latent/var_min = nan"):
        runner.run(["latent"], point_context())


def test_samples_are_like_the_test_data():
    images = np.zeros((7, 4, 4, 1), np.uint8)
    model = Model((4, 4, 1), own=lambda num, seed: np.full((num, 4, 4, 1), 2.0, np.float32))
    samples = context(images, images, model=model, num_samples=5).samples()
    assert samples.shape == (5, 4, 4, 1) and samples.dtype == np.uint8 and (samples == 255).all()
    points = point_context(num_samples=5).samples()
    assert points.shape == (5, 3) and points.dtype == np.float32


def test_draws_are_repeatable_independent_and_differ_by_seed():
    model = Model((3,), own=normal_points)
    draws = [
        point_context(model=model, seed=seed).draw("own", CHUNK + 500, index)
        for seed, index in ((0, 0), (0, 0), (0, 1), (1, 0))
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
    assert len(np.unique(np.concatenate(draws[1:])[:, 0])) == 3 * (CHUNK + 500)


def test_a_model_is_called_in_chunks_that_cover_the_data():
    x = normal_points(2 * CHUNK + 5, 0)
    sizes = []
    model = Model((3,), own=x)
    encode = model.encode
    model.encode = lambda chunk: sizes.append(len(chunk)) or encode(chunk)
    np.testing.assert_array_equal(context(x, x[:9], model=model).embeddings("train"), x)
    assert sizes == [CHUNK, CHUNK, 5]


def test_results_are_computed_once():
    ctx = point_context()
    assert ctx.samples() is ctx.samples("own")
    assert ctx.embeddings("train") is ctx.embeddings("train")


def test_another_model_keeps_what_is_of_the_data_alone():
    ctx = point_context()
    for of in DEPENDS:
        ctx.cached(of, lambda: "old", depends_on=of)
    ctx.used["extractor"] = {"weights": "w"}
    other = ctx.with_model(Model((3,), own=normal_points))
    assert other.model is not ctx.model and other.priors == ctx.priors
    assert [other.cached(of, lambda: "new", depends_on=of) for of in DEPENDS] == [
        "old",
        "new",
        "new",
    ]
    assert other.used is ctx.used
    other = ctx.with_model(Model((3,), own=normal_points), same_autoencoder=True)
    assert [other.cached(of, lambda: "new", depends_on=of) for of in DEPENDS] == [
        "old",
        "old",
        "new",
    ]


def test_values_are_shown_with_their_spreads():
    values = {"a": 1.23456, "a/spread": 0.123, "b": 1234.5, "b/spread": 111.1, "c": 2.0}
    shown = tables.shown(values, 4)
    assert shown == {"a": "1.235 ± 0.12", "b": "1234 ± 111", "c": "2"}


def test_a_subset_is_distinct_indices_and_at_most_all():
    ctx = point_context(num_samples=20)
    assert len(np.unique(ctx.subset("train"))) == 20
    np.testing.assert_array_equal(ctx.subset("test", 1000), np.arange(60))


def test_reconstructions_of_a_subset_are_of_that_subset():
    ctx = point_context()
    expected = ctx.train.data[ctx.subset("train", 10)]
    (part,) = ctx.reconstructed("train", 10)
    np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(ctx.reconstructions("train", ctx.subset("train", 10)), expected)


def test_reconstructed_images_are_held_as_bytes_only(digits, monkeypatch):
    monkeypatch.setattr(context_module, "CHUNK", 50)
    ctx = context(digits[0][:60], digits[2][:120], num_samples=60)
    runner.run(["reconstruction"], ctx)
    for source, images in {"recon": ctx.test.data, "recon_train": ctx.train.data}.items():
        found = images_of(ctx, source)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, images)
    held = [x for cache in ctx._caches.values() for x in cache.values()]
    assert not [x for x in held if getattr(x, "dtype", None) == np.float32]


def test_a_diverged_model_is_reported():
    model = Model((3,), own=lambda num, seed: np.full((num, 3), np.nan, np.float32))
    with pytest.raises(UserError, match="samples of prior 'own' hold NaN"):
        point_context(model=model).samples()


def test_an_own_prior_is_needed_only_where_samples_are():
    ctx = point_context(priors=())
    runner.run(["reconstruction"], ctx)
    with pytest.raises(UserError, match="'wasserstein' needs the run's own prior"):
        runner.run(["wasserstein"], ctx)


def test_reconstruction_has_the_closed_form_of_constant_errors():
    images = np.full((2, 4, 4, 1), 128, np.uint8)
    model = Model((4, 4, 1), own=images)
    offsets = np.float32([0.1, 0.2]).reshape(2, 1, 1, 1)
    model.reconstruct = lambda x: to_float(x) + offsets
    values = runner.run(["reconstruction"], context(images, images, model=model))
    assert values["recon/mse"] == pytest.approx((0.01 + 0.04) / 2, rel=1e-5)
    assert values["recon/mse01"] == pytest.approx((0.05**2 + 0.1**2) / 2, rel=1e-5)
    psnr = np.mean([20 * np.log10(1 / 0.05), 20 * np.log10(1 / 0.1)])
    assert values["recon/psnr"] == pytest.approx(psnr, rel=1e-5)


@pytest.mark.parametrize("kind", ["blur", "noise"])
def test_reconstructions_are_worse_the_more_they_are_blurred_or_noisy(digits, kind):
    test, values = digits[2][:60], []
    noise = np.random.default_rng(0).normal(size=test.shape).astype(np.float32)
    for level in (0, 0.3, 0.6, 1.2):
        model = Model((8, 8, 1), own=test)
        x = to_float(test)
        worse = gaussian_filter(x, (0, level, level, 0)) if kind == "blur" else x + level * noise
        model.reconstruct = lambda x, worse=worse: worse
        values.append(runner.run(["reconstruction"], context(test, test, model=model)))
    for key, sign in (("mse", 1), ("mse01", 1), ("psnr", -1), ("ssim", -1)):
        assert np.all(sign * np.diff([each[f"recon/{key}"] for each in values]) > 0), key
    assert values[0]["recon/mse"] == 0 and values[0]["recon/ssim"] == pytest.approx(1)


def test_a_perfect_reconstruction_counts_as_100_decibels():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    assert runner.run(["reconstruction"], context(images, images))["recon/psnr"] == 100


def plain_ssim(x, y, size):
    """The index of Wang et al. (2004), window by window, of images [H, W, C] in [0, 1]."""
    i = np.arange(size) - size // 2
    weights = np.exp(-(i**2 + i[:, None] ** 2) / (2 * 1.5**2))
    weights = (weights / weights.sum()).ravel()
    values = []
    for c, top, left in np.ndindex(x.shape[2], x.shape[0] - size + 1, x.shape[1] - size + 1):
        a, b = (z[top : top + size, left : left + size, c].ravel() for z in (x, y))
        (var_a, cov), (_, var_b) = np.cov([a, b], aweights=weights, bias=True)
        mean_a, mean_b = weights @ a, weights @ b
        above = (2 * mean_a * mean_b + 0.01**2) * (2 * cov + 0.03**2)
        values.append(above / (mean_a**2 + mean_b**2 + 0.01**2) / (var_a + var_b + 0.03**2))
    return np.mean(values)


@pytest.mark.parametrize(("shape", "size"), [((16, 13, 3), 11), ((8, 12, 1), 7)])
def test_ssim_agrees_with_its_definition(shape, size):
    rng = np.random.default_rng(0)
    x = rng.uniform(size=(40, *shape)).astype(np.float32)
    y = (x + rng.normal(scale=0.2, size=x.shape)).astype(np.float32)
    found = reconstruction.ssim(x, y)
    np.testing.assert_allclose(found[[0, 39]], [plain_ssim(x[i], y[i], size) for i in (0, 39)])
    np.testing.assert_allclose(reconstruction.ssim(x, x), 1)


def test_points_have_only_the_plain_error():
    model = Model((3,), own=normal_points)
    model.reconstruct = lambda x: x - np.float32([0, 0, 3])
    values = runner.run(["reconstruction"], point_context(model=model))
    assert values == {"recon/mse": pytest.approx(3, rel=1e-5)}


def test_latent_moments_agree_with_numpy():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + [0, 1, -3, 0]).astype(np.float32)
    values = runner.run(["latent"], context(z, z[:9]))
    assert values["latent/mean_abs_max"] == pytest.approx(np.abs(z.mean(0)).max(), rel=1e-4)
    assert values["latent/var_min"] == pytest.approx(z.var(0).min(), rel=1e-4)
    assert values["latent/var_max"] == pytest.approx(z.var(0).max(), rel=1e-4)
    correlation = np.abs(np.corrcoef(z.T)[np.triu_indices(4, 1)]).mean()
    assert values["latent/corr_abs_mean"] == pytest.approx(correlation, rel=1e-4)


def test_latent_covariances_agree_with_numpy():
    z = normal_points(500, 0, 4) @ np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    values = runner.run(["latent"], context(z, z[:9]))
    covariances = np.abs(np.cov(z.T, bias=True)[np.triu_indices(4, 1)])
    assert values["latent/cov_abs_mean"] == pytest.approx(covariances.mean(), rel=1e-4)
    assert values["latent/cov_abs_max"] == pytest.approx(covariances.max(), rel=1e-4)


@pytest.mark.parametrize("dim", [1, 3])
def test_a_constant_coordinate_is_reported_and_not_divided_by(dim):
    values = runner.run(
        ["latent"], context(np.ones((9, dim), np.float32), normal_points(9, 0, dim))
    )
    assert values["latent/var_min"] == 0 and values["latent/corr_abs_mean"] == 0


def test_fd_agrees_with_scipy_on_the_features(digits):
    train, _, test, _ = digits
    test = test[:150]
    noise = np.random.default_rng(0).integers(0, 256, (300, 8, 8, 1), np.uint8)
    model = Model((8, 8, 1), own=noise)
    model.reconstruct = lambda x: to_float(x) * np.float32(0.5)
    ctx = context(train, test, model=model, num_samples=200)
    values = runner.run(["fd_efficientnet_lite0"], ctx)

    def moments(images):
        features = extract_features(efficientnet_lite0, images).astype(np.float64)
        return features.mean(0), (features - features.mean(0)) / np.sqrt(len(features) - 1)

    halved = np.rint((test / 127.5 - 1) * 0.5 * 127.5 + 127.5).astype(np.uint8)
    mean2, factor2 = moments(test)
    for what, images in {
        "own": ctx.samples(), "floor": train[ctx.subset("train")], "recon": halved
    }.items():  # fmt: skip
        mean1, factor1 = moments(images)
        gram = factor1 @ factor2.T
        root = np.trace(np.real(scipy.linalg.sqrtm(gram.T @ gram)))
        squares = np.sum(factor1**2) + np.sum(factor2**2)
        expected = np.sum((mean1 - mean2) ** 2) + squares - 2 * root
        assert values[f"fd_efficientnet_lite0/{what}"] == pytest.approx(expected, rel=1e-5)


def test_features_are_computed_once_for_all_metrics(digits, monkeypatch):
    train, train_labels, test, test_labels = digits
    calls = []

    def stream(images, **_):
        calls.append(len(images))
        yield images.reshape(len(images), -1).astype(np.float32)

    monkeypatch.setattr(efficientnet_lite0, "stream", stream)
    ctx = context(train, test, labels=(train_labels, test_labels), num_samples=300)
    runner.run(["fd_efficientnet_lite0", "classes"], ctx)
    assert sorted(calls) == sorted([len(test), 300, 300, len(test), 300, 300])


def test_a_feature_set_is_made_for_each_resolution(digits):
    ctx = context(digits[0], digits[2][:3])
    small, large = (Features(ctx, "efficientnet_lite0", resolution=r).of("test") for r in (32, 64))
    assert not np.allclose(small, large)


def test_wasserstein_agrees_with_sorting_in_one_dimension():
    a, b = normal_points(300, 0, 1), 2 * normal_points(300, 1, 1)
    expected = np.sqrt(ot.wasserstein_1d(a[:, 0], b[:, 0], p=2))
    assert wasserstein.wasserstein2(a, b) == pytest.approx(expected, rel=1e-6)


def test_wasserstein_of_a_translation_is_its_length():
    a = normal_points(200, 0)
    assert wasserstein.wasserstein2(a, a + np.float32([2, 3, 6])) == pytest.approx(7, rel=1e-6)
    assert wasserstein.wasserstein2(a, a[::-1]) == pytest.approx(0, abs=1e-6)


def test_wasserstein_ratio_is_about_one_for_the_truth_and_larger_for_a_shift():
    model = Model((3,), own=normal_points, shifted=lambda n, seed: normal_points(n, seed) + 1)
    ctx = point_context(model=model, fresh=normal_points)
    values = runner.run(["wasserstein"], ctx, {"wasserstein": {"draws": 3, "num": 400}})
    assert values["w2/ratio"] == pytest.approx(1, abs=0.1)
    assert values["w2/ratio"] == values["w2/own"] / values["w2/floor"]
    assert values["w2/shifted"] == pytest.approx(np.sqrt(3), abs=0.15)


def test_wasserstein_draws_fresh_points_every_time():
    seeds = []
    ctx = point_context(fresh=lambda num, seed: seeds.append(seed) or normal_points(num, seed))
    runner.run(["wasserstein"], ctx, {"wasserstein": {"draws": 3, "num": 10}})
    assert len(set(seeds)) == 6


def test_wasserstein_without_fresh_points_compares_halves_of_the_test_set():
    test = np.r_[np.zeros((50, 1)), np.full((50, 1), 2.0)].astype(np.float32)
    model = Model((1,), own=np.full((5, 1), 1, np.float32))
    ctx = context(test, test, model=model)
    values = runner.run(["wasserstein"], ctx, {"wasserstein": {"draws": 20}})
    assert values["w2/own"] == pytest.approx(1)  # every real point is 1 away from every sample
    assert 0 < values["w2/floor"] < 1


def test_fresh_points_come_from_the_data_set():
    fresh = fresh_points("swiss_roll")
    np.testing.assert_array_equal(fresh(10, 3), swiss_roll.points(10, 3)[0])
    assert fresh_points("digits") is None


def venna_kaski(x, z, k):
    """1 - 2 / (nk(2n - 3k - 1)) Σ_i Σ_{j a neighbour in z, none in x} (rank of j in x - k)."""
    n = len(x)
    ranks, near = (
        np.argsort(np.argsort(np.linalg.norm(a[:, None] - a, axis=-1), 1), 1) for a in (x, z)
    )
    intruders = np.where((near >= 1) & (near <= k) & (ranks > k), ranks - k, 0)
    return 1 - 2 / (n * k * (2 * n - 3 * k - 1)) * intruders.sum()


def test_topology_agrees_with_its_definition():
    x = normal_points(60, 1)
    model = Model((3,), own=x)
    model.encode = lambda x: np.sin(3 * x[:, :2])
    values = runner.run(["topology"], point_context(model=model))
    z = np.sin(3 * x[:, :2])
    assert values["topology/trustworthiness"] == pytest.approx(venna_kaski(x, z, 12), rel=1e-6)
    assert values["topology/continuity"] == pytest.approx(venna_kaski(z, x, 12), rel=1e-6)


def test_topology_tells_collapsing_from_tearing():
    x = np.random.default_rng(0).uniform(size=(400, 2)).astype(np.float32)
    model = Model((2,), own=x)
    model.encode = lambda x: x[:, :1]
    collapsed = runner.run(["topology"], context(x, x, model=model))
    assert collapsed["topology/trustworthiness"] < 0.9 < collapsed["topology/continuity"]
    model.encode = lambda x: x + np.float32(5) * (np.floor(x * 8).sum(1, keepdims=True) % 2)
    torn = runner.run(["topology"], context(x, x, model=model))
    assert torn["topology/continuity"] < torn["topology/trustworthiness"]


@pytest.mark.parametrize("dim", [1, 200])
def test_distance_correlation_agrees_with_its_definition(dim):
    x = normal_points(30, 0, dim).astype(np.float64)
    z = np.sin(x[:, :1]) + 0.3 * normal_points(30, 1, 1)
    a, b = (np.linalg.norm(y[:, None] - y, axis=-1) for y in (x, z))

    def centered(d):
        n = len(d)
        u = np.zeros_like(d)
        for i, j in np.ndindex(d.shape):
            if i != j:
                means = d[i].sum() / (n - 2) + d[:, j].sum() / (n - 2)
                u[i, j] = d[i, j] - means + d.sum() / (n - 1) / (n - 2)
        return u

    u, v = centered(a), centered(b)
    expected = max(np.sum(u * v) / np.sqrt(np.sum(u * u) * np.sum(v * v)), 0) ** 0.5
    assert topology.distance_correlation(a, b) == pytest.approx(expected)
    assert topology.distance_correlation(a, 3 * a) == pytest.approx(1)


def test_distance_correlation_is_about_0_for_independent_samples_of_many_dimensions():
    a, b = (squareform(pdist(normal_points(500, seed, 200))) for seed in range(2))
    assert topology.distance_correlation(a, b) < 0.1


def test_geodesics_are_those_of_isomap():
    x, _ = swiss_roll.points(300, 0)
    distances = squareform(pdist(x.astype(np.float64)))
    expected = Isomap(n_neighbors=8, metric="precomputed").fit(distances).dist_matrix_
    np.testing.assert_allclose(topology.geodesic_distances(distances, 8), expected, rtol=1e-6)


def test_geodesics_reach_separate_groups_and_equal_examples():
    x = np.r_[np.zeros((9, 2)), np.full((9, 2), 3.0), [[3, 4]]]
    geodesics = topology.geodesic_distances(squareform(pdist(x)), 2)
    assert geodesics[0, 8] == pytest.approx(0) and geodesics[0, 18] == pytest.approx(18**0.5 + 1)


def test_topology_prefers_the_unrolled_sheet_to_the_view_from_above():
    x, _ = swiss_roll.points(800, 0)
    model = Model((3,), own=x)
    model.encode = lambda x: swiss_roll.unroll(x)[1]
    unrolled = runner.run(["topology"], context(x, x, model=model), {"topology": {"neighbours": 6}})
    model.encode = lambda x: x[:, :2]
    above = runner.run(["topology"], context(x, x, model=model), {"topology": {"neighbours": 6}})
    assert unrolled["topology/geodesic_correlation"] > 0.99
    assert above["topology/geodesic_correlation"] < 0.8
    assert unrolled["topology/neighbours_kept"] > 0.9 > 0.5 > above["topology/neighbours_kept"]
    model.encode = lambda x: x @ np.float32([[0, 1, 0], [0, 0, 1], [1, 0, 0]])
    rotated = runner.run(["topology"], context(x, x, model=model), {"topology": {"neighbours": 6}})
    assert rotated["topology/neighbours_kept"] == 1
    assert rotated["topology/distance_correlation"] == pytest.approx(1, abs=1e-6)


def test_class_shares_are_those_of_the_samples(digits):
    train, train_labels, test, test_labels = digits
    drawn = np.r_[np.flatnonzero(test_labels == 3)[:60], np.flatnonzero(test_labels == 4)[:20]]
    ctx = context(
        train,
        test,
        labels=(train_labels, test_labels),
        model=Model((8, 8, 1), own=test[drawn]),
        num_samples=800,
    )
    values = runner.run(["classes"], ctx)
    assert values["classes/share_max"] == pytest.approx(0.75, abs=0.1)
    assert values["classes/share_min"] == 0
    assert values["classes/accuracy"] > 0.7


@pytest.mark.parametrize("labels", [None, np.zeros(20, np.float32)], ids=["none", "coordinates"])
def test_classes_need_class_labels(digits, labels):
    ctx = context(digits[0][:20], digits[2][:20], labels=(labels, labels))
    with pytest.raises(UserError, match="needs a class for every example"):
        runner.run(["classes"], ctx)
