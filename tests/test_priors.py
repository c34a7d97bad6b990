"""Priors: each one's samples have the distribution that it was fitted to."""

import io

import jax
import numpy as np
import ot
import pytest
from sklearn.mixture import GaussianMixture

from pmjax import parallel, plugins, priors
from pmjax.errors import UserError
from pmjax.optimizers import make_optimizer
from pmjax.priors.latent_gan import BASES
from pmjax.report import Report
from pmjax.step import init_state
from pmjax.train import train


def mixture_points(num, seed):
    rng = np.random.default_rng(seed)
    centres = np.array([[-1.2, 0.0], [1.2, 0.5]])
    return (centres[rng.integers(2, size=num)] + 0.3 * rng.normal(size=(num, 2))).astype("float32")


def w2(a, b):
    return np.sqrt(ot.emd2([], [], ot.dist(a, b), numItermax=10**6))


def fit_and_sample(name, z, num, **args):
    prior = priors.make(name, args)
    arrays = prior.fit(z, seed=0)
    return prior, arrays, np.asarray(prior.sample(arrays, jax.random.key(1), num))


@pytest.mark.parametrize("name", plugins.names("priors"))
def test_each_file_defines_a_prior_that_is_fitted_or_trained(name):
    prior = priors.make(name)
    assert hasattr(prior, "fit") != priors.is_trained(prior)
    assert plugins.load("priors", name, provides="Prior").__doc__


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


def test_latent_gan_finds_both_modes(tmp_path):
    z = mixture_points(2000, 0)
    prior = priors.make("latent_gan", {"width": 64, "critic_repeats": 3})
    optimizer = make_optimizer(steps=1500, learning_rate=1e-3, b1=0.0, b2=0.99)
    state = train(
        stage="test",
        game=prior.game(2, optimizer, None),
        data=z,
        steps=1500,
        batch_size=64,
        steps_per_dispatch=500,
        seed=0,
        ema_decay=0.99,
        mode="jit",
        mesh=parallel.make_mesh(1),
        device_budget=1e9,
        directory=tmp_path,
        checkpoint_every=10**9,
        keep=1,
        log_every=10**9,
        info={},
        report=Report(tmp_path, stream=io.StringIO()),
    )
    samples = np.asarray(prior.sample(prior.trained(state), jax.random.key(0), 1000))
    fresh = mixture_points(1000, 1)
    gaussian = fit_and_sample("gaussian", z, 1000)[2]
    assert w2(samples, fresh) < 0.7 * w2(gaussian, fresh)


def test_latent_gan_samples_map_the_base_that_it_shows():
    prior = priors.make("latent_gan", {"width": 8, "base_dim": 5})
    params = jax.tree.map(
        np.asarray,
        init_g(prior, latent_dim=3),
    )
    base = prior.base(params, jax.random.key(4), 6)
    assert base.shape == (6, 5)
    assert prior.sample(params, jax.random.key(4), 6).shape == (6, 3)


def init_g(prior, latent_dim):
    game = prior.game(latent_dim, make_optimizer(steps=1), None)
    return init_state(game, jax.random.key(0)).params["g"]


def test_sphere_base_has_norm_one():
    draws = BASES["sphere"](jax.random.key(0), (100, 7))
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 1, rtol=1e-5)


def test_unknown_names_get_the_nearest():
    with pytest.raises(UserError, match="Did you mean 'gmm'"):
        priors.make("gmn")
    with pytest.raises(UserError, match="Did you mean 'sphere'"):
        priors.make("latent_gan", {"base_prior": "spere"})
    with pytest.raises(UserError, match="Did you mean 'diag'"):
        priors.make("gmm", {"covariance": "diagonal"})
