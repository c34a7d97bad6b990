"""Priors: each one's samples have the distribution that it was fitted to."""

import jax
import numpy as np
import ot
import pytest
from sklearn.mixture import GaussianMixture

from pmjax import plugins
from pmjax.errors import UserError
from pmjax.nets import base as nets
from pmjax.nets.mlp import LatentGenerator
from pmjax.priors import base as priors
from pmjax.priors.base import FittedPrior, SharedPrior, TrainedPrior
from tests.readme_example import import_example

FITTED = [n for n in plugins.names("priors") if isinstance(priors.make(n), FittedPrior)]


def mixture_points(num, seed):
    rng = np.random.default_rng(seed)
    centers = np.array([[-1.2, 0.0], [1.2, 0.5]])
    return (centers[rng.integers(2, size=num)] + 0.3 * rng.normal(size=(num, 2))).astype("float32")


def fit_and_sample(name, z, num, **args):
    prior = priors.make(name, args)
    arrays = prior.fit(z, seed=0)
    return prior, arrays, np.asarray(prior.sample(arrays, jax.random.key(1), num))


@pytest.mark.parametrize("name", plugins.names("priors"))
def test_each_file_defines_a_prior_of_one_declared_kind(name):
    prior = priors.make(name)
    kinds = [isinstance(prior, kind) for kind in (FittedPrior, TrainedPrior, SharedPrior)]
    assert sum(kinds) == 1
    assert plugins.load("priors", name).__doc__


def test_a_workdir_keeps_the_nets_that_shared_priors_name():
    assert priors.shared_nets() == ("F",)


@pytest.mark.parametrize("name", FITTED)
def test_a_prior_without_a_base_says_so(name):
    assert priors.make(name).sample_base({}, jax.random.key(0), 3) is None


def test_gaussian_has_mean_and_covariance_of_the_embeddings():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(500, 4)) @ rng.normal(size=(4, 4)) + 2).astype("float32")
    _, arrays, samples = fit_and_sample("gaussian", z, 200_000)
    np.testing.assert_allclose(arrays["root"] @ arrays["root"].T, np.cov(z.T, bias=True), rtol=1e-3)
    np.testing.assert_allclose(samples.mean(0), z.mean(0), atol=0.05)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(z.T, bias=True), atol=0.1)


def test_gaussian_takes_fewer_embeddings_than_dimensions():
    z = np.random.default_rng(0).normal(size=(3, 10)).astype("float32")
    _, _, samples = fit_and_sample("gaussian", z, 50)
    assert np.isfinite(samples).all()
    assert np.linalg.matrix_rank(samples - z.mean(0), tol=1e-2) == 2


@pytest.mark.parametrize("covariance", ["full", "tied", "diag", "spherical"])
def test_mixture_has_the_likelihood_of_scikit_learns_own_samples(covariance):
    z = mixture_points(1000, 0)
    reference = GaussianMixture(2, covariance_type=covariance, reg_covar=1e-4, random_state=0)
    reference.fit(z)
    _, _, samples = fit_and_sample("gmm", z, 20_000, components=2, covariance=covariance)
    # Entropy of a mixture by its own density: of ours, and of another fit's on fresh samples.
    refitted = GaussianMixture(2, covariance_type=covariance, random_state=0).fit(samples)
    assert abs(reference.score(samples) - refitted.score(samples)) < 0.02
    np.testing.assert_allclose(np.sort(refitted.means_, 0), np.sort(reference.means_, 0), atol=0.03)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_mixture_is_that_of_standardized_embeddings_at_any_scale_and_place(scale):
    z = mixture_points(100, 0).astype(np.float64)
    z = (z - z.mean(0)) / z.std(0)
    reference = GaussianMixture(2, reg_covar=1e-4, random_state=0).fit(z)
    prior = priors.make("gmm", {"components": 2})
    arrays = prior.fit((scale * (z + 1)).astype("float32"), seed=0)
    np.testing.assert_allclose(arrays["means"] / scale - 1, reference.means_, atol=1e-5)
    covariances = arrays["roots"] @ arrays["roots"].transpose(0, 2, 1) / scale**2
    np.testing.assert_allclose(covariances, reference.covariances_, rtol=1e-3, atol=1e-6)


def test_mixture_of_fewer_different_embeddings_has_fewer_components_and_says_so(caplog):
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(3, 6)), 4, axis=0).astype("float32")
    _, arrays, samples = fit_and_sample("gmm", z, 50)
    assert len(arrays["weights"]) == 3
    assert "3 instead of 10 components: one for each different embedding" in caplog.text
    assert np.abs(ot.dist(samples, z, "euclidean").min(1)).max() < 0.1


@pytest.mark.parametrize("name", ["gaussian", "gmm"])
def test_equal_embeddings_give_samples_equal_to_them(name):
    z = np.full((5, 3), 1e6, np.float32)
    np.testing.assert_array_equal(fit_and_sample(name, z, 4)[2], 1e6)


@pytest.mark.parametrize("name", plugins.names("priors"))
def test_fewer_embeddings_than_a_prior_declares_are_refused(name):
    prior = priors.make(name)
    prior.require_embeddings(prior.min_embeddings)
    with pytest.raises(UserError, match=f"'{name}' needs at least {prior.min_embeddings} "):
        prior.require_embeddings(prior.min_embeddings - 1)


@pytest.mark.parametrize("name", FITTED)
def test_the_least_embeddings_of_a_prior_give_finite_samples(name):
    least = priors.make(name).min_embeddings
    z = np.random.default_rng(0).normal(size=(least, 3)).astype("float32")
    assert np.isfinite(fit_and_sample(name, z, 5)[2]).all()
    if least > 1:
        with pytest.raises(UserError, match="needs at least 2 training examples, not 1"):
            priors.make(name).fit(z[:1], seed=0)


def test_sphere_draws_have_their_radius_and_no_direction():
    z = np.zeros((4, 7), np.float32)
    _, _, samples = fit_and_sample("sphere_uniform", z, 50_000, radius=3.0)
    np.testing.assert_allclose(np.linalg.norm(samples, axis=1), 3, rtol=1e-5)
    np.testing.assert_allclose(samples.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), np.eye(7) * 9 / 7, atol=0.03)


def test_standard_normal_is_that_whatever_the_embeddings_are():
    _, _, samples = fit_and_sample("standard_normal", np.full((5, 3), 9, np.float32), 50_000)
    np.testing.assert_allclose(samples.mean(0), 0, atol=0.02)
    np.testing.assert_allclose(np.cov(samples.T), np.eye(3), atol=0.03)


def test_jittered_draws_lie_by_a_training_embedding():
    z = np.random.default_rng(0).normal(size=(300, 16)).astype("float32")
    _, _, samples = fit_and_sample("knn_jitter", z, 2000, neighbour=2, share=0.1)
    own = np.sort(ot.dist(z, z, "euclidean"), 1)[:, 2]
    to_all = ot.dist(samples, z, "euclidean")
    nearest = to_all.argmin(1)
    share = to_all.min(1) / own[nearest]
    assert np.sqrt(np.square(share).mean()) == pytest.approx(0.1, rel=0.03)
    assert len(np.unique(nearest)) > 290


def test_jitter_of_equal_embeddings_or_of_a_single_one_repeats_it():
    for count in (1, 4):
        z = np.ones((count, 3), np.float32)
        np.testing.assert_array_equal(fit_and_sample("knn_jitter", z, 5)[2], 1)


def test_mapping_applies_stage_1s_own_net():
    F = LatentGenerator(latent_dim=3, width=8, blocks=3)
    params, _ = nets.init(F, jax.random.key(0), np.zeros((2, 5), np.float32))
    prior = priors.make("mapping")
    taken = prior.from_stage1({"E": {}, "G": {}, "F": params})
    base = prior.sample_base(taken, jax.random.key(1), 6)
    assert base.shape == (6, 5)
    wanted = nets.apply(F, params, {}, base)
    np.testing.assert_array_equal(prior.sample(taken, jax.random.key(1), 6), wanted)


def test_mapping_without_the_net_is_refused():
    with pytest.raises(UserError, match="this method has none"):
        priors.make("mapping").from_stage1({"E": {}, "G": {}})


@pytest.mark.parametrize("name", FITTED)
def test_few_embeddings_and_constant_coordinates_are_no_obstacle(name):
    z = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    z[:, 2] = 5.0
    prior, arrays, samples = fit_and_sample(name, z, 9)
    assert samples.shape == (9, 6) and samples.dtype == np.float32
    assert np.isfinite(samples).all()
    if name in ("gaussian", "gmm", "knn_jitter"):
        np.testing.assert_allclose(samples[:, 2], 5, atol=0.5)
    np.testing.assert_array_equal(prior.sample(arrays, jax.random.key(1), 9), samples)
    assert not np.array_equal(prior.sample(arrays, jax.random.key(2), 9), samples)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'gmm'"):
        priors.make("gmn")
    with pytest.raises(UserError, match="Did you mean 'sphere'"):
        priors.make("latent_gan", {"base_prior": "spere"})
    with pytest.raises(UserError, match="Did you mean 'diag'"):
        priors.make("gmm", {"covariance": "diagonal"})


def test_readme_example(tmp_path, monkeypatch):
    import_example("pmjax.priors", tmp_path, monkeypatch)
    assert "laplace" in plugins.names("priors")
    z = mixture_points(2000, 0)
    prior, arrays, samples = fit_and_sample("laplace", z, 20_000)
    assert isinstance(prior, FittedPrior)
    np.testing.assert_allclose(np.median(samples, 0), np.median(z, 0), atol=0.05)
    wide = fit_and_sample("laplace", z, 20_000, widen=2.0)[2]
    np.testing.assert_allclose(np.ptp(wide, 0), 2 * np.ptp(samples, 0), rtol=1e-5)
