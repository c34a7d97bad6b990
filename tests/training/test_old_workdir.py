"""A workdir of version 0.1.0 (commit d08ed84) loads, resumes, evaluates and reports."""

import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import pmjax
from pmjax import config, evaluate
from pmjax.storage import checkpoint, workdir
from tests.small_run import run_command

# Left by an interrupted run: checkpoints of steps 10 and 20 of stage 1, and 10 of stage 2.
RUN = Path(__file__).with_name("old_workdir") / "run"
# What the same version gave at the end of that run, of 20 steps in either stage.
EXPECTED = RUN.with_name("expected")
ARRAYS = dict(np.load(EXPECTED / "arrays.npz"))
METRICS = json.loads((EXPECTED / "metrics.json").read_text())
PRIOR = "priors/latent_gan.msgpack"
# The BatchNorm of the embedding cancels the bias before it, whose gradient is round-off.
NO_GRADIENT = (
    "['params']['E']['trunk']['MLP_0']['Dense_2']['bias']",
    "['stats']['E']['batch_stats']['norm']['BatchNorm_0']['mean']",
)
COMMAND = [
    "--config=configs/swiss_roll.py:runlocal",
    "--config.nets_args.width=16",
    "--config.nets_args.layers=2",
    "--config.data.batch_size=64",
    "--config.prior_args.width=16",
    "--config.prior_args.critic_repeats=2",
    "--config.steps=20",
    "--config.steps_per_dispatch=5",
    "--config.stage2.steps=20",
    "--config.stage2.steps_per_dispatch=5",
    "--config.stage2.batch_size=64",
    "--config.checkpoint.every=10",
    "--config.log_every=5",
    "--config.eval.num_samples=64",
    "--config.eval.metrics=reconstruction,latent",
    "--config.eval.baselines=gaussian",
]


def assert_same_arrays(path, expected):
    """Compares two files of arrays; programs of another machine differ in the last digits."""
    found, wanted = (dict(leaves(checkpoint.read_arrays(file))) for file in (path, expected))
    assert set(found) == set(wanted)
    for name in found:
        if not name.startswith(NO_GRADIENT):
            np.testing.assert_allclose(
                found[name], wanted[name], atol=1e-5, rtol=1e-5, err_msg=name
            )


def leaves(tree):
    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]


def finished_metrics(folder):
    """Returns the metrics of a run that made every step once and was evaluated and reported."""
    rows = [json.loads(row) for row in (folder / "history.jsonl").read_text().splitlines()]
    steps = [(row["stage"], row["step"]) for row in rows]
    assert steps == [(stage, step) for stage in ("stage1", "stage2") for step in (5, 10, 15, 20)]
    metrics = json.loads((folder / "metrics.json").read_text())["metrics"]
    assert set(metrics) == set(METRICS["metrics"])
    assert (folder / "report.html").is_file()
    return metrics


@pytest.fixture
def old(tmp_path):
    """A copy of the old workdir."""
    return shutil.copytree(RUN, tmp_path / "old")


def test_its_config_reads_and_the_same_command_continues_it(old):
    settings = config.read(old / "config.json")
    assert settings.latent_dim == 2 and settings.prior_args.critic_repeats == 2
    overrides = dict(arg.removeprefix("--config.").split("=") for arg in COMMAND[1:])
    workdir.claim(config.load("configs/swiss_roll.py:runlocal", overrides), old)


def test_it_encodes_reconstructs_and_samples_as_before(old):
    model = pmjax.load(old)
    np.testing.assert_allclose(model.encode(ARRAYS["x"]), ARRAYS["z"], atol=1e-6)
    found = model.reconstruct(ARRAYS["x"])
    np.testing.assert_allclose(found, ARRAYS["reconstruction"], atol=1e-5)
    found = model.sample(16, seed=0, prior="gaussian")  # fitted to the old embeddings
    np.testing.assert_allclose(found, ARRAYS["gaussian"], atol=1e-5)


def test_stage_2_resumes_to_the_old_result(old):
    done = run_command("main", *COMMAND, f"--workdir={old}")
    assert done.returncode == 0, done.stderr
    assert (old / "autoencoder.msgpack").read_bytes() == (RUN / "autoencoder.msgpack").read_bytes()
    assert_same_arrays(old / PRIOR, EXPECTED / "latent_gan.msgpack")
    found = pmjax.load(old).sample(16, seed=0)
    np.testing.assert_allclose(found, ARRAYS["samples"], atol=1e-5)
    assert finished_metrics(old) == pytest.approx(METRICS["metrics"], rel=1e-4, abs=1e-6)


def test_stage_1_resumes_to_the_old_result(old):
    shutil.rmtree(old / "checkpoints" / "stage1" / "20")
    shutil.rmtree(old / "checkpoints" / "stage2")
    for name in ("autoencoder.msgpack", "embeddings.npy"):
        (old / name).unlink()
    done = run_command("main", *COMMAND, f"--workdir={old}")
    assert done.returncode == 0, done.stderr
    assert_same_arrays(old / "autoencoder.msgpack", RUN / "autoencoder.msgpack")
    found, expected = (np.load(folder / "embeddings.npy") for folder in (old, RUN))
    np.testing.assert_allclose(found, expected, atol=0.01)
    assert finished_metrics(old) == pytest.approx(METRICS["metrics"], rel=0.02, abs=0.01)


def test_its_results_stay_when_it_is_evaluated_again(old, monkeypatch):
    (old / "priors").mkdir()
    shutil.copy(EXPECTED / "latent_gan.msgpack", old / PRIOR)
    shutil.copy(EXPECTED / "metrics.json", old / "metrics.json")
    monkeypatch.setattr(sys, "argv", ["evaluate", f"--workdir={old}", "--evals=latent"])
    evaluate.main()
    found = json.loads((old / "metrics.json").read_text())
    assert found["metrics"] == pytest.approx(METRICS["metrics"], rel=1e-4, abs=1e-6)
    assert found["history"][:-1] == METRICS["history"]
    assert set(found["history"][-1]["metrics"]) < set(METRICS["metrics"])
