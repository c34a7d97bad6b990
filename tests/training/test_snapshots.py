"""Models of a run that are kept beside its last one: checkpoints that are evaluated."""

import json
import shutil
import types
from functools import partial

import jax
import numpy as np
import pytest

import pmjax
from pmjax import builders, config
from pmjax.errors import UserError
from pmjax.evals import figures, runner
from pmjax.storage import metrics_file, workdir
from pmjax.storage.checkpoint import Checkpoints
from pmjax.training import snapshots
from pmjax.training.optimizers import stage1_optimizer, stage2_optimizer
from pmjax.training.step import init_state

SMALL = {
    "nets_args.width": "8",
    "prior_args.width": "8",
    "prior_args.base_prior": "gaussian",
    "stage2.steps": "2",
    "stage2.steps_per_dispatch": "1",
    "stage2.batch_size": "4",
    "eval.metrics": "reconstruction,sliced_wasserstein",
    "eval.baselines": "gaussian",
    "eval.num_samples": "20",
    "steps": "40",
}
STEPS = (10, 20)
POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


@pytest.fixture(autouse=True)
def data(monkeypatch):
    """Few points, and no figures: both would take most of the time."""
    data = types.SimpleNamespace(data=POINTS, labels=None, fingerprint="points", skipped=())
    monkeypatch.setattr(builders, "dataset", lambda settings, split: data)
    monkeypatch.setattr(figures, "draw", lambda ctx, workdir: ())
    return data


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return make(tmp_path_factory.mktemp("run") / "shared")[0]


@pytest.fixture
def run(shared, tmp_path):
    return shutil.copytree(shared, tmp_path / "run")


def make(folder, **overrides):
    """Makes a workdir whose stage 1 has come to step 20 of 40: two checkpoints and no model."""
    settings = config.load("configs/swiss_roll.py", SMALL | overrides)
    workdir.claim(settings, folder)
    spec, optimizer = builders.stage1_spec(settings, (3,)), stage1_optimizer(settings)
    checkpoints, states = Checkpoints(folder / "checkpoints" / "stage1"), {}
    for step in STEPS:
        state = jax.jit(partial(init_state, spec, optimizer))(jax.random.key(step))
        states[step] = state.replace(step=np.int32(step))
        checkpoints.save(states[step], {"data": "points"})
    checkpoints.close()
    return folder, settings, states


def evaluate(run, checkpoint, **args):
    folder = snapshots.from_checkpoint(run, checkpoint)
    return runner.evaluate(folder, pmjax.load(folder), **args)


def test_a_checkpoint_of_an_unfinished_run_is_evaluated(run):
    with pytest.raises(UserError, match="--checkpoint=latest"):
        pmjax.load(run)
    values = evaluate(run, "latest")
    assert {"recon/mse", "sliced_w2/latent_gan", "sliced_w2/gaussian"} <= set(values)
    found = json.loads((run / "at-20" / metrics_file.METRICS).read_text())
    assert found["metrics"] == values and not (run / metrics_file.METRICS).exists()
    assert (run / "at-20" / "report.html").is_file()
    again = {"eval.metrics": "reconstruction"}
    other = evaluate(run, "10", overrides=again)
    assert other["recon/mse"] != values["recon/mse"] and (run / "at-10").is_dir()
    same = evaluate(run, "20", overrides=again)
    found = json.loads((run / "at-20" / metrics_file.METRICS).read_text())
    assert same["recon/mse"] == values["recon/mse"] and len(found["history"]) == 2
    assert found["metrics"] == values


def test_a_joint_run_s_checkpoint_has_its_prior(tmp_path):
    _, settings, states = make(tmp_path, schedule="joint")
    folder = snapshots.from_checkpoint(tmp_path, "10")
    state = states[10]
    arrays = builders.trained_prior(settings).export(state.params | state.ema, state.stats)
    _, found = pmjax.load(folder).fitted_prior("latent_gan")
    jax.tree.map(np.testing.assert_array_equal, found, arrays)


def test_a_checkpoint_of_stage_2_is_the_prior_of_that_step(run):
    settings = config.read(run / "config.json")
    stage1 = snapshots.from_checkpoint(run, "20")
    for name in (workdir.AUTOENCODER, workdir.EMBEDDINGS):
        shutil.copy(stage1 / name, run / name)
    z = workdir.read_embeddings(run)
    spec, optimizer = builders.stage2_spec(settings, z=z), stage2_optimizer(settings)
    state = jax.jit(partial(init_state, spec, optimizer))(jax.random.key(5))
    checkpoints = Checkpoints(run / "checkpoints" / "stage2")
    checkpoints.save(state.replace(step=np.int32(7)), {"data": workdir.fingerprint(z)})
    checkpoints.close()
    folder = snapshots.from_checkpoint(run, "stage2/latest")
    assert folder.name == "at-stage2-7"
    _, found = pmjax.load(folder).fitted_prior("latent_gan")
    arrays = builders.trained_prior(settings).export(state.params | state.ema, state.stats)
    jax.tree.map(np.testing.assert_array_equal, found, arrays)
    assert (folder / workdir.AUTOENCODER).read_bytes() == (run / workdir.AUTOENCODER).read_bytes()
    with pytest.raises(UserError, match="latest, 10, 20, stage2/latest, stage2/7"):
        snapshots.from_checkpoint(run, "stage2/8")


def test_a_checkpoint_s_workdir_is_not_trained(run):
    folder = snapshots.from_checkpoint(run, "10")
    with pytest.raises(UserError, match=f"a snapshot of the run in {run},"):
        workdir.claim(config.read(run / "config.json"), folder)


@pytest.mark.parametrize("step", ["15", "last", "-1"])
def test_a_missing_checkpoint_is_named_with_those_that_exist(tmp_path, step):
    for found in STEPS:
        (tmp_path / "checkpoints" / "stage1" / str(found)).mkdir(parents=True)
    workdir.claim(config.load("configs/swiss_roll.py", SMALL), tmp_path)
    with pytest.raises(UserError, match=f"no checkpoint {step} in .* There are: latest, 10, 20"):
        snapshots.from_checkpoint(tmp_path, step)


def test_a_run_without_checkpoints_is_reported(tmp_path):
    with pytest.raises(UserError, match="is not a workdir"):
        snapshots.from_checkpoint(tmp_path, "latest")
    workdir.claim(config.load("configs/swiss_roll.py", SMALL), tmp_path)
    with pytest.raises(UserError, match="There are: none"):
        snapshots.from_checkpoint(tmp_path, "latest")


def test_a_damaged_checkpoint_is_reported_and_left_unchanged(run):
    folder = run / "checkpoints" / "stage1" / "20"
    (folder / "SHA256SUMS").write_text("")
    with pytest.raises(UserError, match="20 is damaged .* Use another one"):
        snapshots.from_checkpoint(run, "latest")
    assert folder.is_dir() and not (run / "at-20").exists()


def test_a_checkpoint_of_other_data_is_refused(run, data):
    data.fingerprint = "others"
    with pytest.raises(UserError, match=r"belongs to other training data \(points, now others\)"):
        snapshots.from_checkpoint(run, "10")
