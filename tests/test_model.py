"""A loaded model: what it computes, what it compiles, and which arguments it rejects."""

import numpy as np
import pytest

import pmjax
from pmjax import api, config
from pmjax.errors import UserError
from pmjax.model import Model
from pmjax.priors import gaussian
from pmjax.storage import checkpoint
from pmjax.storage.workdir import AUTOENCODER, CONFIG


def test_model_encodes_decodes_reconstructs_and_interpolates(small_run):
    model = pmjax.load(str(small_run))
    x = np.random.default_rng(0).integers(0, 256, (5, 28, 28, 1), dtype=np.uint8)
    z = model.encode(x)
    assert z.shape == (5, 8) and z.dtype == np.float32
    np.testing.assert_allclose(model.encode(pmjax.to_float(x)), z, atol=1e-5)
    np.testing.assert_allclose(model.reconstruct(x), model.decode(z), atol=1e-6)
    between = model.interpolate(x[:2], x[2:4], steps=9)
    assert between.shape == (2, 9, 28, 28, 1)
    np.testing.assert_allclose(between[:, 0], model.reconstruct(x[:2]), atol=1e-5)
    np.testing.assert_allclose(between[:, -1], model.reconstruct(x[2:4]), atol=1e-5)
    middle = model.decode((z[:2] + z[2:4]) / 2)
    np.testing.assert_allclose(between[:, 4], middle, atol=1e-5)


def test_samples_depend_on_the_seed_alone(small_run):
    model = pmjax.load(small_run)
    np.testing.assert_array_equal(model.sample(4, seed=1), pmjax.load(small_run).sample(4, seed=1))
    assert not np.array_equal(model.sample(4, seed=1), model.sample(4, seed=2))
    assert not np.array_equal(model.sample(4, seed=1), model.sample(4, seed=1, prior="gaussian"))
    assert np.abs(model.sample(4)).max() <= 1


def test_draws_of_a_size_are_compiled_once(small_run, monkeypatch):
    traced, sample = [], gaussian.Prior.sample
    monkeypatch.setattr(
        gaussian.Prior, "sample", lambda *args: traced.append(args[-1]) or sample(*args)
    )
    model = pmjax.load(small_run)
    for num in (4, 4, 5, 4):
        model.sample_latent(num, seed=num, prior="gaussian")
    assert traced == [4, 5]


def with_value(value):
    """Returns five images, of which the last but one holds a value."""
    x = np.zeros((5, 28, 28, 1))
    x[3, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda model: model.encode(np.zeros((2, 28, 28))), "shape"),
        (lambda model: model.encode(with_value(200.0)), r"within \[-1, 1\].*example 3 is outside"),
        (lambda model: model.encode(np.ones((2, 28, 28, 1), int)), "uint8, not int64"),
        (lambda model: model.decode(np.zeros((2, 9))), "decode takes"),
        (lambda model: model.decode(np.zeros((2, 8), complex)), "not complex128"),
        (lambda model: model.sample(0), "at least 1"),
        (lambda model: model.sample(1, prior="gm"), "Did you mean 'gmm'"),
        (
            lambda model: model.interpolate(*np.zeros((2, 1, 28, 28, 1)), steps=1),
            "`steps` must be at least 2",
        ),
        (lambda model: pmjax.load("/nowhere"), "is not a workdir"),
    ],
    ids=[
        "shape",
        "range",
        "integers",
        "latent",
        "complex",
        "none",
        "prior",
        "steps",
        "workdir",
    ],
)
def test_wrong_arguments_are_named(small_run, call, message):
    with pytest.raises(UserError, match=message):
        call(pmjax.load(small_run))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("function", ["encode", "reconstruct", "interpolate", "decode"])
def test_inputs_that_are_not_finite_are_named(small_run, function, value):
    model = pmjax.load(small_run)
    x = with_value(value) if function != "decode" else with_value(value)[:, 0, :8, 0]
    args = (np.zeros_like(x), x) if function == "interpolate" else (x,)
    with pytest.raises(UserError, match=f"(example|embedding) 3 holds {value}"):
        getattr(model, function)(*args)


def test_without_training_a_prior_that_is_not_there_is_named(small_run):
    arrays = checkpoint.read_arrays(small_run / AUTOENCODER)
    loaded = Model(config.read(small_run / CONFIG), arrays, workdir=small_run)
    assert loaded.sample(2).shape == (2, 28, 28, 1)
    with pytest.raises(UserError, match="has no prior 'realnvp'"):
        loaded.sample(2, prior="realnvp")


def test_the_package_offers_the_interface():
    assert all(getattr(pmjax, name) is getattr(api, name) for name in pmjax.__all__)
    with pytest.raises(AttributeError, match="no attribute 'fitt'"):
        pmjax.fitt  # noqa: B018
