"""Non-finite numbers and saturated objectives: found at their step, named, nothing spoiled."""

import dataclasses
import logging
import shutil
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from pmjax import config, plugins
from pmjax.datasets.base import Dataset
from pmjax.datasets.batches import batch_indices
from pmjax.distributed.mesh import make_mesh
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.evals.context import Context
from pmjax.evals.features import inception_2015
from pmjax.finite import NotFinite
from pmjax.methods.base import MethodSpec, NetBuilder, Objective
from pmjax.nets.base import Net
from pmjax.storage import checkpoint
from pmjax.training import loop, stages
from pmjax.training.monitor import WINDOW, MetricsMonitor
from pmjax.training.step import init_state
from tests.distributed.host_process import Metrics

EXAMPLES, BATCH, BAD_STEP = 44, 8, 5
MARK = 7.0  # the first value of the example on which the fault happens
MARKED = int(batch_indices(EXAMPLES, BATCH, BAD_STEP - 1, seed=0)[3])


def images():
    x = np.random.default_rng(0).uniform(-1, 1, (EXAMPLES, 4, 4, 1)).astype(np.float32)
    x[MARKED, 0, 0, 0] = MARK
    return x


@pytest.fixture
def lines(caplog):
    """Returns (words) -> the log lines that contain them."""
    caplog.set_level(logging.INFO, logger="pmjax")
    return lambda words: [line for line in caplog.messages if words in line]


def sgd(updates_per_step):
    return optax.sgd(0.05, momentum=0.5)


def pm(fault=None):
    """The paper's method on small perceptrons; `fault` is (objective, what of it, value)."""
    build = NetBuilder(
        shape=(4, 4, 1),
        latent_dim=3,
        family="mlp",
        net_args={"width": 8},
        batch_norm={"momentum": 0.9},
    )
    whole = plugins.load("methods", "pm").Method().spec(build)
    if fault is None:
        return whole
    name, what, value = fault

    def faulty(inner, net, nets, s, key):
        found, metrics = inner(nets, s, key)
        hit = jnp.any(s.x[:, 0, 0, 0] == MARK)
        if what == "loss":
            return found + jnp.where(hit, value, 0.0), metrics
        # A root at zero: its value is finite, its slope is not.
        squares = sum(jnp.sum(jnp.square(p)) for p in jax.tree.leaves(getattr(nets, net).params))
        return found + 1e-6 * jnp.sqrt(squares * jnp.where(hit, 0.0, 1.0)), metrics

    objectives = tuple(
        dataclasses.replace(o, loss=partial(faulty, o.loss, o.nets[0])) if o.name == name else o
        for o in whole.objectives
    )
    return dataclasses.replace(whole, objectives=objectives)


def fit(
    directory, spec, run_log=None, *, optimizer=sgd, mode="jit", devices=1, data=None, **options
):
    values = dict(steps=8, checkpoint_every=2, keep=9, log_every=1, seed=0, ema_decay=0.9)
    state = loop.train(
        spec,
        optimizer,
        images() if data is None else data,
        loop.LoopOptions(stage="stage1", batch_size=BATCH, mode=mode, **values | options),
        mesh=make_mesh(devices),
        directory=directory,
        info={"data": "it"},
        run_log=Metrics() if run_log is None else run_log,
    )
    return plain(state)


def plain(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def saved(directory, step=None):
    """The state and the info that the checkpoint of a step holds, or the newest."""
    folder = directory / "stage1"
    if step is not None:
        folder = directory / f"only_{step}"
        shutil.copytree(directory / "stage1" / str(step), folder / str(step))
    store = checkpoint.Checkpoints(folder, keep=9)
    like = jax.eval_shape(partial(init_state, pm(), sgd), jax.random.key(0))
    state, info = store.restore(like)
    store.close()
    return plain(state), info


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The last state of a run without faults, and its directory."""
    directory = tmp_path_factory.mktemp("undisturbed")
    return fit(directory, pm()), directory


@pytest.mark.parametrize(
    "fault, options, named",
    [
        (("critic", "loss", np.nan), {}, "loss/critic is nan"),
        (("autoencoder", "loss", -np.inf), {"steps_per_dispatch": 3}, "loss/autoencoder is -inf"),
        (("critic", "gradient", None), {}, "the gradient of objective 'critic' is not finite"),
        (
            ("autoencoder", "gradient", None),
            {"steps_per_dispatch": 4},
            "the gradient of objective 'autoencoder' is not finite",
        ),
    ],
    ids=["critic_loss", "autoencoder_loss", "critic_gradient", "autoencoder_gradient"],
)
def test_a_fault_is_named_at_its_step_and_the_last_good_state_continues(
    fault, options, named, undisturbed, tmp_path
):
    with pytest.raises(NotFinite) as stopped:
        fit(tmp_path, pm(fault), **options)
    assert f"stage1: {named}" in str(stopped.value)
    assert f"at step {BAD_STEP}. The checkpoint of step " in str(stopped.value)
    newest, _ = saved(tmp_path)
    assert int(newest.step) == (4 if options.get("steps_per_dispatch", 1) != 3 else 3)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(newest))
    if fault[1] == "loss":
        gone_on = fit(tmp_path, pm())  # what was at fault is mended
        chex.assert_trees_all_close(gone_on, undisturbed[0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("mode, devices", [("jit", 1), ("pmap", 4)])
def test_a_step_that_is_not_finite_can_be_left_out_whole_and_is_counted(
    mode, devices, undisturbed, tmp_path, lines
):
    faulty = pm(("critic", "gradient", None))
    options = {"mode": mode, "devices": devices, "skip_nonfinite": 1, "checkpoint_every": 1}
    run_log = Metrics()
    fit(tmp_path, faulty, run_log, steps=6, **options)
    (line,) = lines("is skipped")
    assert f"step {BAD_STEP} is skipped: the gradient of objective 'critic'" in line
    assert [run_log[step]["skipped"] for step in (4, 5, 6)] == [0, 1, 1]
    (after, info), (before, _) = saved(tmp_path, BAD_STEP), saved(tmp_path, BAD_STEP - 1)
    assert info["skipped"] == 1
    assert (int(after.step), int(before.step)) == (BAD_STEP, BAD_STEP - 1)
    for part in ("params", "stats", "opt", "ema"):
        chex.assert_trees_all_equal(getattr(after, part), getattr(before, part))
    # The steps before are what they are without the option.
    expected, _ = saved(undisturbed[1], BAD_STEP - 1)
    chex.assert_trees_all_close(before, expected, rtol=1e-3, atol=1e-4)
    shutil.rmtree(undisturbed[1] / f"only_{BAD_STEP - 1}")


def test_the_count_continues_after_a_restart_and_one_more_ends_the_run(tmp_path):
    faulty = pm(("critic", "loss", np.nan))
    options = {"skip_nonfinite": 1, "steps_per_dispatch": 2}
    fit(tmp_path, faulty, steps=6, **options)
    again = 1 + next(
        step for step in range(6, 20) if MARKED in batch_indices(EXAMPLES, BATCH, step, seed=0)
    )
    with pytest.raises(NotFinite, match=f"at step {again}.*--config.skip_nonfinite=10"):
        fit(tmp_path, faulty, steps=20, **options)


def test_a_checkpoint_never_holds_a_state_that_is_not_finite(tmp_path):
    """Loss and gradients are finite at the step whose update overflows."""
    overflow = optax.chain(optax.scale(-1e38), optax.scale(1e30))
    with pytest.raises(NotFinite, match=r"after step 1 is not saved: params\.\S+ is not finite"):
        fit(tmp_path, pm(), optimizer=lambda updates_per_step: overflow, checkpoint_every=1)
    assert not [path for path in (tmp_path / "stage1").iterdir() if path.name.isdigit()]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_example_that_is_not_finite_is_named_before_the_first_step(value, tmp_path):
    data = images()
    data[17, 2, 3, 0] = value
    with pytest.raises(NotFinite, match=f"stage1: example 17 holds {value}"):
        fit(tmp_path, pm(), data=data)


def test_an_embedding_that_is_not_finite_is_named(tmp_path, monkeypatch):
    settings = config.load(
        "configs/digits.py",
        {
            "nets": "mlp",
            "nets_args.width": "8",
            "latent_dim": "3",
            "steps": "1",
            "prior": "gmm",
            "eval.metrics": "latent",
        },
    )

    class Diverged:
        def encode(self, x):
            z = np.zeros((len(x), 3), np.float32)
            z[11, 2] = np.nan
            return z

    monkeypatch.setattr(stages.model, "Model", lambda settings, arrays: Diverged())
    with pytest.raises(NotFinite, match="The embedding of training example 11 holds nan"):
        stages.fit(settings, tmp_path, Metrics(), ProcessGroup())
    assert not (tmp_path / "embeddings.npy").exists()
    np.save(tmp_path / "embeddings.npy", Diverged().encode(range(20)))
    for name in ("gaussian", "realnvp"):
        with pytest.raises(NotFinite, match="The embedding of training example 11 holds nan"):
            stages.fit_prior(settings, tmp_path, name)


def test_features_that_are_not_finite_are_named(tmp_path, monkeypatch):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path))

    def stream(images, **args):
        yield np.full((len(images), 4), np.nan if images.mean() > 100 else 0.5, np.float32)

    for name, value in {
        "stream": stream,
        "DIM": 4,
        "identity": lambda **args: {"variant": "v"},
    }.items():
        monkeypatch.setattr(inception_2015, name, value)
    dark, light = (np.full((9, 4, 4, 1), shade, np.uint8) for shade in (10, 200))
    ctx = Context.from_images(light, Dataset(dark, None, "dark", ()))
    with pytest.raises(UserError, match="features of 'samples' hold NaN or infinite values"):
        runner.run(["fid"], ctx)


class Score(nn.Module):
    """A critic of numbers: a·x + b."""

    @nn.compact
    def __call__(self, x, *, train=False):
        return nn.Dense(1)(x)[:, 0]


CRITICS = {
    "hinge": lambda real, fake: jax.nn.relu(1 - real) + jax.nn.relu(1 + fake),
    "logistic": lambda real, fake: jax.nn.softplus(-real) + jax.nn.softplus(fake),
    "least_squares": lambda real, fake: jnp.square(real - 1) + jnp.square(fake),
    "dead": lambda real, fake: jax.nn.relu(-jnp.square(real)) + 2.0,
}


def duel(loss, *, apart):
    """A critic of x against -x if they are `apart`; of pure noise if not."""

    def forward(nets, x, key):
        sign = jnp.sign(jax.random.normal(key, x.shape))
        return {"x": x if apart else x * sign, "other": -x if apart else -x * sign}

    def critic(nets, s, key):
        return jnp.mean(CRITICS[loss](nets.D(s.x), nets.D(s.other))), {}

    objective = Objective("critic", ("D",), critic)
    return MethodSpec({"D": Net(Score(), (1,))}, forward, (), (objective,))


def adam(updates_per_step):
    return optax.adam(0.3)


@pytest.mark.parametrize("loss", CRITICS)
def test_a_saturated_critic_is_warned_of_once(loss, tmp_path, caplog, lines):
    data = np.ones((64, 1), np.float32)
    options = {
        "optimizer": adam,
        "data": data,
        "steps": 1000,
        "steps_per_dispatch": 100,
        "checkpoint_every": 1000,
    }
    fit(tmp_path / "apart", duel(loss, apart=True), **options)
    (line,) = warnings(caplog)
    assert "stage1: objective 'critic' is saturated: in steps " in line
    if loss == "dead":
        assert f"steps 1 to {WINDOW}" in line
        return
    caplog.clear()
    fit(tmp_path / "noise", duel(loss, apart=False), **options)
    assert not warnings(caplog)


def warnings(caplog):
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


def test_a_second_stretch_is_warned_of_again(lines):
    options = loop.LoopOptions(
        stage="stage1", steps=10**6, batch_size=1, seed=0, ema_decay=0.9, log_every=10**6
    )
    monitor = MetricsMonitor(options, ["critic"], Metrics())
    norms = [1.0, 0.0, 1e-4, 0.5, 0.0]  # of so many stretches
    for index, norm in enumerate(norms):
        metrics = {"loss/critic": np.zeros(WINDOW), "grad_norm/critic": np.full(WINDOW, norm)}
        monitor.update(index * WINDOW, metrics)
    first, second = lines("is saturated")
    assert "steps 101 to 200 " in first and "steps 401 to 500 " in second


@pytest.fixture(autouse=True)
def quiet():
    logging.getLogger("absl").setLevel(logging.ERROR)
