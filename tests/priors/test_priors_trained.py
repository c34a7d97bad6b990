"""Priors that the loop trains: what each promises, and training one when a run has ended."""

import dataclasses
import functools
import shutil

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from pmjax import api, builders, config, plugins
from pmjax.errors import UserError
from pmjax.nets import base as nets
from pmjax.nets.mlp import LatentGenerator
from pmjax.priors import base as priors
from pmjax.priors.base import TrainedPrior
from pmjax.priors.latent_gan import BASES
from pmjax.priors.standardized import Standardize
from pmjax.storage import checkpoint
from pmjax.storage import workdir as workdirs
from pmjax.training import stages
from pmjax.training.optimizers import for_objective, make_optimizer, stage2_optimizer
from tests.priors.train_prior import draw, fit, start
from tests.small_run import ROOT

SMALL = {
    "latent_gan": {"width": 16, "blocks": 1},
    "flow_matching": {"width": 16, "blocks": 1, "ode_steps": 4},
    "two_stage_vae": {"width": 16, "blocks": 1},
    "realnvp": {"width": 16, "couplings": 2, "layers": 1},
}
TRAINED = [
    name
    for name in plugins.names("priors")
    if isinstance(priors.make(name), TrainedPrior) and name != "code_prior"  # test_code_prior.py
]


def mixture_points(num, seed):
    rng = np.random.default_rng(seed)
    centers = np.array([[-1.2, 0.0], [1.2, 0.5]])
    return (centers[rng.integers(2, size=num)] + 0.3 * rng.normal(size=(num, 2))).astype("float32")


def energy_distance(a, b):
    """Returns the unbiased 2 E|a - b| - E|a - a'| - E|b - b'|."""

    def mean(x, y):
        return np.linalg.norm(x[:, None] - y[None], axis=-1).sum()

    n, m = len(a), len(b)
    return 2 * mean(a, b) / (n * m) - mean(a, a) / (n * (n - 1)) - mean(b, b) / (m * (m - 1))


@functools.cache
def fitted_to_little(name):
    """Returns a prior, trained for a moment on fewer embeddings than dimensions; and its arrays."""
    z = np.random.default_rng(0).normal(size=(4, 6)).astype("float32")
    z[:, 2] = 5.0
    prior = priors.make(name, SMALL.get(name))
    return prior, fit(prior, z, 200, batch_size=16)


@pytest.mark.parametrize("name", TRAINED)
def test_few_embeddings_and_constant_coordinates_are_no_obstacle(name):
    prior, arrays = fitted_to_little(name)
    samples = draw(prior, arrays, 1, 9)
    assert samples.shape == (9, 6) and samples.dtype == np.float32
    assert np.isfinite(samples).all()
    if name != "latent_gan":  # which knows no coordinate's mean beforehand
        np.testing.assert_allclose(samples[:, 2], 5, atol=0.01)


@pytest.mark.slow  # compiles each prior for another size
@pytest.mark.parametrize("name", ["flow_matching", "latent_gan", "two_stage_vae", "realnvp"])
def test_the_least_embeddings_all_alike_and_batches_of_one_give_finite_samples(name):
    prior = priors.make(name, SMALL[name])
    z = np.full((prior.min_embeddings, 3), 2.0, np.float32)
    assert np.isfinite(draw(prior, fit(prior, z, 3, batch_size=1), 1, 4)).all()


def test_a_fitted_base_takes_as_many_embeddings_as_a_prior_of_its_kind():
    prior = priors.make("latent_gan", SMALL["latent_gan"])
    with pytest.raises(UserError, match="needs at least 2 training examples, not 1"):
        prior.init_from_embeddings(prior.spec(3), np.ones((1, 3), np.float32), seed=0)
    assert priors.make("latent_gan", {"base_prior": "gaussian"}).min_embeddings == 1


@pytest.mark.parametrize("name", TRAINED)
def test_a_seed_gives_the_same_draws_and_another_others(name):
    prior, arrays = fitted_to_little(name)
    first = draw(prior, arrays, 1, 9)
    np.testing.assert_array_equal(draw(prior, arrays, 1, 9), first)
    assert not np.allclose(draw(prior, arrays, 2, 9), first)


@pytest.mark.parametrize("name", TRAINED)
def test_what_is_kept_survives_the_file(name, tmp_path):
    prior, arrays = fitted_to_little(name)
    checkpoint.write_arrays(tmp_path / "prior", arrays)
    jax.tree.map(np.testing.assert_array_equal, checkpoint.read_arrays(tmp_path / "prior"), arrays)


def test_standardised_embeddings_have_the_moments_of_the_whole_table():
    z = np.random.default_rng(0).normal(3, [0.1, 2.0, 0.0], (640, 3)).astype("float32")
    arrays = fit(priors.make("realnvp", SMALL["realnvp"]), z, 10)  # one epoch
    np.testing.assert_allclose(arrays["mean"], z.mean(0), rtol=1e-4)
    np.testing.assert_allclose(arrays["deviation"], z.std(0), rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_standardization_is_the_same_at_any_scale(scale):
    z = np.random.default_rng(0).normal(3, [0.1, 2.0, 0.0], (64, 3)).astype("float32")
    z[:, 2] = 0
    expected = (z - z.mean(0)) / np.where(z.std(0) > 0, z.std(0), 1)
    variables = Standardize().init(jax.random.key(0), z, train=False)
    y, _ = Standardize().apply(variables, scale * z, train=True, mutable=["moments"])
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_latent_gan_finds_both_modes():
    z = mixture_points(2000, 0)
    prior = priors.make("latent_gan", {"width": 64, "critic_repeats": 3})
    arrays = fit(prior, z, 1500, learning_rate=1e-3)
    samples = draw(prior, arrays, 0, 1000)
    gaussian = np.random.default_rng(2).multivariate_normal(z.mean(0), np.cov(z.T), 1000)
    fresh = mixture_points(1000, 1)
    assert energy_distance(samples, fresh) < 0.3 * energy_distance(gaussian, fresh)


def test_latent_gan_samples_map_the_base_that_it_shows():
    args = {"base_prior": "gaussian", "base_dim": 5}
    prior = priors.make("latent_gan", SMALL["latent_gan"] | args)
    params = start(prior.spec(3), make_optimizer(steps=1)).params
    assert prior.sample_base(params["g"], jax.random.key(4), 6).shape == (6, 5)
    assert prior.sample(params["g"], jax.random.key(4), 6).shape == (6, 3)


def test_latent_gan_corrects_a_base_that_is_fitted(tmp_path):
    z = mixture_points(200, 0)
    args = {"width": 8, "blocks": 1, "base_prior": "gmm"}
    prior = priors.make("latent_gan", args)
    checkpoint.write_arrays(tmp_path / "prior", fit(prior, z, 10))
    arrays = checkpoint.read_arrays(tmp_path / "prior")
    mixture = priors.make("gmm")
    fitted = mixture.fit(z, seed=0)
    np.testing.assert_array_equal(arrays["base"]["means"], fitted["means"])
    base = draw(mixture, fitted, 4, 6)
    shown = jax.jit(prior.sample_base, static_argnums=2)(arrays, jax.random.key(4), 6)
    np.testing.assert_allclose(shown, base, rtol=1e-5, atol=1e-6)
    g = LatentGenerator(2, 8, 1)
    params = {name: array for name, array in arrays.items() if name != "base"}
    wanted = base + nets.apply(g, params, {}, base)
    np.testing.assert_allclose(draw(prior, arrays, 4, 6), wanted, rtol=1e-5, atol=1e-6)


def test_a_base_of_another_size_cannot_be_fitted():
    with pytest.raises(UserError, match="base_dim=5 must be 0"):
        priors.make("latent_gan", {"base_prior": "gmm", "base_dim": 5})


def test_sphere_base_has_norm_one():
    draws = BASES["sphere"](jax.random.key(0), (100, 7))
    np.testing.assert_allclose(np.linalg.norm(draws, axis=1), 1, rtol=1e-5)


@functools.cache
def flow_to_a_mixture():
    prior = priors.make("flow_matching", {"width": 64, "blocks": 2})
    return prior, fit(prior, mixture_points(2000, 0), 1000)


def test_flow_matching_finds_a_mixture():
    z = mixture_points(2000, 0)
    samples = draw(*flow_to_a_mixture(), 0, 1000)
    gaussian = np.random.default_rng(2).multivariate_normal(z.mean(0), np.cov(z.T), 1000)
    fresh = mixture_points(1000, 1)
    assert energy_distance(samples, fresh) < 0.15 * energy_distance(gaussian, fresh)


def test_half_of_flow_matchings_step_changes_samples_by_less_than_a_percent():
    prior, arrays = flow_to_a_mixture()
    samples = draw(prior, arrays, 0, 1000)
    finer = draw(dataclasses.replace(prior, ode_steps=2 * prior.ode_steps), arrays, 0, 1000)
    assert 0 < np.abs(finer - samples).max() < 0.01 * samples.std()


def test_flow_matchings_solvers_agree_as_the_steps_become_small():
    _, arrays = fitted_to_little("flow_matching")

    def drawn(solver, ode_steps):
        args = SMALL["flow_matching"] | {"solver": solver, "ode_steps": ode_steps}
        return draw(priors.make("flow_matching", args), arrays, 3, 50)

    exact = drawn("heun", 256)
    heun, euler, fine = (drawn(*how) for how in (("heun", 32), ("euler", 32), ("euler", 1024)))
    assert np.abs(heun - exact).max() < 0.5 * np.abs(euler - exact).max()
    np.testing.assert_allclose(fine, exact, atol=0.05)


@pytest.mark.parametrize("ode_steps", [0, -3])
def test_flow_matching_without_steps_is_refused(ode_steps):
    with pytest.raises(UserError, match=rf"ode_steps={ode_steps} must be at least 1"):
        priors.make("flow_matching", {"ode_steps": ode_steps})


def test_two_stage_vae_reaches_the_moments_of_a_gaussian():
    root = np.array([[1.0, 0, 0], [0.8, 0.5, 0], [-0.5, 0.3, 0.2]])
    z = (np.random.default_rng(0).normal(size=(4000, 3)) @ root.T + [1, 2, 3]).astype("float32")
    prior = priors.make("two_stage_vae", {"width": 64, "blocks": 1})
    samples = draw(prior, fit(prior, z, 2500), 0, 20_000)
    np.testing.assert_allclose(samples.mean(0), z.mean(0), atol=0.08)
    np.testing.assert_allclose(np.cov(samples.T), np.cov(z.T), atol=0.1)


@functools.cache
def couplings(dim):
    """Returns z, u = f(z), log |det|, ∂u/∂z and f⁻¹(u), for a flow with random weights."""
    f = priors.make("realnvp", {"width": 16, "couplings": 4, "layers": 1})._flow(dim)

    @jax.jit
    def everything():
        params, _ = nets.init(f, jax.random.key(0), jnp.zeros((2, dim)))
        flat, unravel = jax.flatten_util.ravel_pytree(params)
        params = unravel(0.3 * jax.random.normal(jax.random.key(1), flat.shape))
        z = jax.random.normal(jax.random.key(2), (7, dim))
        u, log_det = nets.apply(f, params, {}, z)
        jacobian = jax.vmap(jax.jacobian(lambda z: nets.apply(f, params, {}, z[None])[0][0]))(z)
        return z, u, log_det, jacobian, nets.apply(f, params, {}, u, method="inverse")

    return jax.device_get(everything())


@pytest.mark.parametrize("dim", [1, 5])
def test_realnvps_determinant_is_that_of_its_jacobian(dim):
    _, _, log_det, jacobian, _ = couplings(dim)
    np.testing.assert_allclose(log_det, np.linalg.slogdet(jacobian)[1], atol=1e-5)
    assert np.abs(log_det).min() > 1e-3


@pytest.mark.parametrize("dim", [1, 5])
def test_realnvps_inverse_brings_everything_back(dim):
    z, u, _, _, back = couplings(dim)
    assert np.abs(u - z).max(0).min() > 0.1  # each coordinate is moved
    np.testing.assert_allclose(back, z, atol=1e-4)


def test_realnvp_finds_a_mixture():
    z = mixture_points(2000, 0)
    prior = priors.make("realnvp", {"width": 32, "couplings": 6})
    samples = draw(prior, fit(prior, z, 1000), 0, 1000)
    gaussian = np.random.default_rng(2).multivariate_normal(z.mean(0), np.cov(z.T), 1000)
    fresh = mixture_points(1000, 1)
    assert energy_distance(samples, fresh) < 0.3 * energy_distance(gaussian, fresh)


def test_a_trained_prior_is_trained_at_its_first_use_and_saved(finished, monkeypatch, capsys):
    first = api.load(finished).sample_latent(5, prior="two_stage_vae")
    assert "two_stage_vae  10/20" in capsys.readouterr().err
    again = finished / "again"
    shutil.copytree(finished, again, ignore=shutil.ignore_patterns("priors", "again"))
    api.load(again).fitted_prior("two_stage_vae")
    written = [
        workdirs.prior_path(path, "two_stage_vae").read_bytes() for path in (finished, again)
    ]
    assert written[0] == written[1]
    monkeypatch.setattr(stages, "train", None)
    kept = api.load(finished).sample_latent(5, prior="two_stage_vae")
    np.testing.assert_array_equal(kept, first)


def test_a_prior_that_needs_another_optimizer_gets_it_and_the_user_can_say_so():
    def b1(prior, **args):
        settings = config.load(
            f"{ROOT}/configs/digits.py",
            {"prior": prior, **{f"prior_args.{name}": str(v) for name, v in args.items()}},
        )
        (objective,) = builders.stage2_spec(settings).objectives[-1:]
        gradient = {"w": jnp.ones(1)}
        optimizer = for_objective(stage2_optimizer(settings), objective)
        _, state = optimizer.update(gradient, optimizer.init(gradient))
        return 1 - float(state[0].mu["w"][0])

    assert b1("latent_gan") == pytest.approx(0.0)
    assert b1("flow_matching") == pytest.approx(0.9)
    assert b1("flow_matching", b1=0.5) == pytest.approx(0.5)


def test_the_runs_own_prior_is_left_to_the_training_command(finished):
    settings = config.read(finished / workdirs.CONFIG)
    with settings.unlocked():
        settings.prior, settings.prior_args = "flow_matching", {}
    config.save(settings, finished / workdirs.CONFIG)
    with pytest.raises(
        UserError, match="no trained prior 'flow_matching': training has not reached"
    ):
        api.load(finished).sample(1)


def test_a_method_without_a_mapping_says_so(finished):
    with pytest.raises(UserError, match="'mapping' is the net F of methods that train one"):
        api.load(finished).sample(1, prior="mapping")
