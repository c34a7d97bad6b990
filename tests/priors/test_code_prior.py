"""The prior over codes: it finds them, learns their distribution, and resumes."""

import json
import logging
import shutil

import jax
import numpy as np
import pytest

from pmjax import api, builders, config
from pmjax.errors import UserError
from pmjax.priors import base as priors
from pmjax.priors.code_prior import find_codes
from pmjax.storage import checkpoint
from pmjax.storage import workdir as workdirs
from tests.priors.train_prior import draw, fit
from tests.small_run import ROOT


def code_embeddings(num, codes=5, slots=3, code_dim=2, seed=0):
    rng = np.random.default_rng(seed)
    book = rng.normal(size=(codes, code_dim)).astype("float32")
    return book[rng.integers(codes, size=(num, slots))].reshape(num, slots * code_dim)


@pytest.mark.parametrize("code_dim", [1, 2, 3])
def test_codebook_is_found_again_in_the_embeddings(code_dim):
    rng = np.random.default_rng(0)
    book = rng.normal(size=(7, code_dim)).astype(np.float32)
    codes = rng.integers(7, size=(400, 6 // code_dim))
    found, slots = find_codes(book[codes].reshape(400, 6))
    np.testing.assert_array_equal(np.sort(found, 0), np.sort(book, 0))
    np.testing.assert_array_equal(found[slots], book[codes])


@pytest.mark.parametrize("num", [4, 100])
def test_embeddings_without_codes_are_refused(num):
    prior, z = priors.make("code_prior"), np.random.default_rng(0).normal(size=(num, 6))
    with pytest.raises(UserError, match="made of codes"):
        prior.init_from_embeddings(prior.spec(6), z.astype("float32"), seed=0)


def test_embeddings_without_codes_are_refused_when_the_prior_is_asked_for(finished):
    with pytest.raises(UserError, match="made of codes"):
        api.load(finished).sample(1, prior="code_prior")


def test_it_has_the_distribution_of_codes_that_depend_on_one_another():
    rng = np.random.default_rng(1)
    book = rng.normal(size=(4, 2)).astype(np.float32)

    def sample_codes(num):
        first = rng.choice(4, size=num, p=[0.1, 0.2, 0.3, 0.4])
        second = rng.integers(4, size=num)
        third = (first + second) % 4  # mostly: known from both, not from either
        third = np.where(rng.uniform(size=num) < 0.8, third, rng.integers(4, size=num))
        return np.stack([first, second, third], 1)

    prior = priors.make("code_prior", {"width": 32, "dropout": 0.1})
    z = book[sample_codes(3000)].reshape(3000, 6)
    params = fit(prior, z, 400, batch_size=128, learning_rate=1e-2)
    samples = draw(prior, params, 0, 4000).reshape(-1, 3, 1, 2)
    assert (samples == book).all(-1).any(-1).all()
    table, expected = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    np.add.at(table, tuple((samples == book).all(-1).argmax(-1).T), 1 / 4000)
    np.add.at(expected, tuple(sample_codes(100_000).T), 1e-5)
    assert np.abs(table - expected).sum() / 2 < 0.15  # total variation; 0.05 is chance


def test_loss_is_the_likelihood_of_what_is_sampled():
    """The density of all codes sums to one, and samples have their frequencies."""
    prior = priors.make("code_prior", {"width": 16})
    params = fit(prior, code_embeddings(200, codes=3, slots=2), 50)
    book = params["book"]
    pairs = np.stack([np.concatenate([a, b]) for a in book for b in book])
    spec = prior.init_from_embeddings(prior.spec(4), pairs.repeat(2, 0), seed=0)
    net = {name: array for name, array in params.items() if name != "book"}
    variables = {"params": net, "codebook": {"vectors": book}}
    nats = spec.nets["density"].module.apply(variables, pairs, train=False)
    density = np.exp(-2 * np.asarray(nats))
    np.testing.assert_allclose(density.sum(), 1, rtol=1e-5)
    samples = draw(prior, params, 0, 20_000)
    frequency = (samples[:, None] == pairs).all(-1).mean(0)
    np.testing.assert_allclose(frequency, density, atol=0.02)


def test_few_embeddings_are_no_obstacle():
    z = code_embeddings(4, codes=2)
    prior = priors.make("code_prior", {"width": 16})
    arrays = fit(prior, z, 50, batch_size=16)
    samples = draw(prior, arrays, 1, 9)
    assert samples.shape == (9, 6) and samples.dtype == np.float32
    np.testing.assert_array_equal(draw(prior, arrays, 1, 9), samples)
    assert not np.array_equal(draw(prior, arrays, 2, 9), samples)
    assert set(arrays) == {"embed", "enter", "hidden", "leave", "bias", "book"}  # the file format


def test_killed_training_resumes_to_the_same_bits(finished, caplog):
    caplog.set_level(logging.INFO, logger="pmjax")
    workdirs.write_embeddings(finished, code_embeddings(100, slots=2))
    whole = api.load(finished).fitted_prior("code_prior")[1]
    stage = finished / "priors" / "code_prior" / "checkpoints" / "code_prior"
    shutil.rmtree(stage / "20")  # as if it had stopped after step 10
    workdirs.prior_path(finished, "code_prior").unlink()
    resumed = api.load(finished).fitted_prior("code_prior")[1]
    assert "code_prior: resuming at step 10." in caplog.messages
    rows = [json.loads(row) for row in (stage.parents[1] / "history.jsonl").open()]
    assert {"nats", "loss/prior"} <= set(rows[-1]["values"])
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_joint_training_is_refused():
    settings = config.load(
        f"{ROOT}/configs/digits.py",
        {"method": "vq_vae", "prior": "code_prior", "schedule": "joint", "nets": "mlp"},
    )
    with pytest.raises(UserError, match="cannot be initialized from them"):
        builders.stage1_spec(settings, (28, 28, 1))


def test_workdirs_in_which_it_was_fitted_still_load_and_sample(finished):
    settings = json.loads((finished / workdirs.CONFIG).read_text())
    settings["prior"] = "code_prior"
    settings["prior_args"] = {"width": 16, "steps": 77, "learning_rate": 0.01, "dropout": 0.2}
    (finished / workdirs.CONFIG).write_text(json.dumps(settings))
    prior = priors.make("code_prior", {"width": 16})
    arrays = fit(prior, code_embeddings(50, slots=2), 5)
    checkpoint.write_arrays(workdirs.prior_path(finished, "code_prior"), arrays)
    np.testing.assert_array_equal(
        api.load(finished).sample_latent(5, seed=1), draw(prior, arrays, 1, 5)
    )


def test_other_priors_have_no_steps(finished):
    settings = json.loads((finished / workdirs.CONFIG).read_text())
    settings["prior_args"] = {"steps": 77}
    (finished / workdirs.CONFIG).write_text(json.dumps(settings))
    with pytest.raises(UserError, match="Prior 'gmm' has no argument 'steps'"):
        api.load(finished)
