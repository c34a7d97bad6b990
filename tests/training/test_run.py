"""The commands, end to end: the files they write, how they resume, and how they report mistakes."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

import pmjax
from pmjax import builders, config, evaluate, sample
from pmjax.evals import figures, runner
from pmjax.storage import workdir as workdirs
from tests.small_run import ROOT, SMALL, run_command

# How often a run is killed, half of it in each stage; more: PMJAX_KILLS=10 pytest -k killed.
KILLS = int(os.environ.get("PMJAX_KILLS", 2))
RESULTS = ("autoencoder.msgpack", "embeddings.npy", "priors/latent_gan.msgpack")


def start(workdir, *args, program=("pmjax.main",)):
    command = [sys.executable, "-m", *program, *SMALL, f"--workdir={workdir}", *args]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(workdir, stage, step, process):
    """Waits until the history shows a step of a stage."""
    path = workdir / "history.jsonl"
    while process.poll() is None:
        rows = path.read_text().splitlines() if path.exists() else []
        for row in rows:
            try:
                row = json.loads(row)
            except ValueError:  # being written
                continue
            if row["stage"] == stage and row["step"] >= step:
                return
        time.sleep(0.005)


def results(workdir):
    return {name: (workdir / name).read_bytes() for name in RESULTS}


def test_a_run_leaves_metrics_report_and_pictures(small_run):
    metrics = json.loads((small_run / "metrics.json").read_text())
    assert {"recon/mse", "recon/mse01", "recon/psnr", "latent/var_min"} <= set(metrics["metrics"])
    assert {"versions", "seed", "devices", "config", "data"} <= set(metrics)
    assert "<img" in (small_run / "report.html").read_text()
    assert (small_run / "figures" / "samples_latent_gan.png").is_file()
    assert list((small_run / "events").rglob("*tfevents*"))


def test_wanted_steps_leave_a_trace_for_tensorboard_and_perfetto(small_run):
    assert list((small_run / "profile").rglob("*.xplane.pb"))
    assert list((small_run / "profile").rglob("perfetto_trace.json.gz"))


def test_a_profile_that_is_not_step_and_count_is_refused(tmp_path):
    done = run_command("main", *SMALL, "--config.profile=20", f"--workdir={tmp_path}")
    assert done.returncode == 2 and "must be STEP:COUNT, such as 100:5" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("streamed", [False, True], ids=["on_device", "streamed"])
def test_killed_anywhere_it_resumes_to_the_same_bits(small_run, tmp_path, streamed):
    rng = random.Random(int(streamed))
    moments = [("stage1", step) for step in sorted(rng.sample(range(1, 58), KILLS // 2))]
    moments += [("stage2", step) for step in sorted(rng.sample(range(1, 50), KILLS // 2))]
    budget = "--config.data.device_budget_gb=0.000001" if streamed else "--config.seed=0"
    workdir = tmp_path / "run"
    for stage, step in moments:
        process = start(workdir, budget)
        wait_for(workdir, stage, step, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    done = run_command("main", *SMALL, f"--workdir={workdir}", budget)
    assert done.returncode == 0, done.stderr
    assert ("streaming" in done.stderr) == streamed
    assert results(workdir) == results(small_run)


@pytest.mark.slow
def test_sigterm_saves_exits_cleanly_and_resumes_to_the_same_bits(small_run, tmp_path):
    process = start(tmp_path / "run", program=("tests.killed_process", "SIGTERM", "step"))
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "run the same command" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "metrics.json").exists()
    done = run_command("main", *SMALL, f"--workdir={tmp_path / 'run'}")
    assert "resuming at step" in done.stderr
    assert results(tmp_path / "run") == results(small_run)


def test_a_finished_run_only_evaluates_again(own_run):
    before = results(own_run)
    (own_run / "metrics.json").unlink()
    done = run_command("main", *SMALL, f"--workdir={own_run}")
    assert done.returncode == 0, done.stderr
    assert "stage1: already finished" in done.stderr and "stage2: already finished" in done.stderr
    assert (own_run / "metrics.json").is_file()
    assert results(own_run) == before


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_skipped(small_run, tmp_path):
    process = start(tmp_path / "run")
    wait_for(tmp_path / "run", "stage1", 45, process)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    folder = tmp_path / "run" / "checkpoints" / "stage1"
    newest = max((p for p in folder.iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    for path in newest.rglob("*"):
        if path.is_file():
            os.truncate(path, path.stat().st_size // 2)
    done = run_command("main", *SMALL, f"--workdir={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert f"{newest} is damaged" in done.stderr
    assert results(tmp_path / "run") == results(small_run)


def test_divergence_stops_names_step_and_loss_and_keeps_the_last_checkpoint(tmp_path):
    workdir = tmp_path / "run"
    done = run_command(
        "main", *SMALL, f"--workdir={workdir}", "--config.optimizer.learning_rate=1e6"
    )
    assert done.returncode == 2
    assert "stage1: " in done.stderr and " at step " in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "args, message",
    [
        (["--config.metod=pm"], "Did you mean 'config.method'?"),
        (["--config.data.batch_size=33", "--config.devices=2"], "is not divisible by 2 devices"),
        (["--confg=x"], "Did you mean '--config'"),
        (["--config.seed=5"], "config.seed: 0 there, 5 now"),
    ],
    ids=["key", "batch", "flag", "workdir"],
)
def test_mistakes_end_with_one_message(small_run, tmp_path, args, message):
    workdir = small_run if "seed" in args[0] else tmp_path
    done = run_command("main", *SMALL, f"--workdir={workdir}", *args)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_the_prior_can_be_swapped(tmp_path):
    workdir = tmp_path / "run"
    small = [arg for arg in SMALL if "prior_args" not in arg]
    done = run_command("main", *small, f"--workdir={workdir}", "--config.prior=gmm")
    assert done.returncode == 0, done.stderr
    model = pmjax.load(workdir)
    assert model.prior == "gmm"
    assert model.sample(3, seed=0).shape == (3, 28, 28, 1)
    assert not (workdir / "checkpoints" / "stage2").exists()


@pytest.mark.slow
def test_joint_schedule_trains_both_at_once(tmp_path):
    workdir = tmp_path / "run"
    small = ["--config=configs/digits.py:author,runlocal", *SMALL[1:]]
    done = run_command("main", *small, f"--workdir={workdir}", "--config.parallel=pmap")
    assert done.returncode == 0, done.stderr
    assert pmjax.load(workdir).sample(3).shape == (3, 28, 28, 1)
    history = [json.loads(row) for row in (workdir / "history.jsonl").read_text().splitlines()]
    assert {"loss/critic", "loss/latent_critic"} <= set(history[-1]["values"])


def test_sample_command_writes_a_grid_or_an_array(small_run, tmp_path, monkeypatch):
    args = [f"--workdir={small_run}", "--num=9", "--seed=3"]
    out, array = tmp_path / "grid.png", tmp_path / "samples.npy"
    monkeypatch.setattr(sys, "argv", ["sample", *args, f"--out={out}"])
    sample.main()
    assert Image.open(out).size[0] > 3 * 28
    done = run_command("sample", *args, f"--out={array}")
    assert done.returncode == 0, done.stderr
    expected = pmjax.to_uint8(pmjax.load(small_run).sample(9, seed=3))
    np.testing.assert_array_equal(np.load(array), expected)


def test_evaluate_command_takes_other_metrics(own_run, monkeypatch):
    done = run_command("evaluate", f"--workdir={own_run}", "--config.eval.metrics=latent")
    assert done.returncode == 0, done.stderr
    assert "latent/var_min" in done.stdout and "recon/mse" not in done.stdout
    args = [f"--workdir={own_run}", "--config.steps=3"]
    monkeypatch.setattr(sys, "argv", ["evaluate", *args])
    with pytest.raises(pmjax.UserError, match="belongs to training"):
        evaluate.main()


def test_metrics_that_one_test_image_does_not_fit_are_left_out_and_the_report_says_why(
    own_run, monkeypatch
):
    settings, dataset = config.read(own_run / workdirs.CONFIG), builders.dataset
    with settings.unlocked():
        settings.eval.metrics = ("kd_efficientnet_lite0", "latent", "reconstruction")
    config.save(settings, own_run / workdirs.CONFIG)

    def one_to_test(settings, split):
        found = dataset(settings, split)
        rows = slice(1 if split == "test" else None)
        return dataclasses.replace(found, data=found.data[rows], labels=found.labels[rows])

    monkeypatch.setattr(builders, "dataset", one_to_test)
    monkeypatch.setattr(figures, "draw", lambda ctx, workdir: [])  # tests/evals/test_figures.py
    model = pmjax.load(own_run)
    found = runner.evaluate(own_run, model)
    assert {"recon/mse", "latent/var_min"} <= set(found)
    reason = "'kd_efficientnet_lite0' needs at least 4 test examples, not 1"
    left_out = json.loads((own_run / "metrics.json").read_text())["left_out"]
    assert reason in left_out["kd_efficientnet_lite0"]
    assert "at least 4 test examples" in (own_run / "report.html").read_text()
    (own_run / "report.html").unlink()
    with pytest.raises(pmjax.UserError, match=reason):
        named = {"eval.metrics": "kd_efficientnet_lite0,topology"}
        runner.evaluate(own_run, model, overrides=named)
    assert "at least 25 test examples" in (own_run / "report.html").read_text()


def test_an_evaluation_takes_the_embeddings_that_training_has_left(own_run, monkeypatch):
    encoded, encode = [], pmjax.Model.encode
    monkeypatch.setattr(
        pmjax.Model, "encode", lambda model, x: encoded.append(len(x)) or encode(model, x)
    )
    found = runner.evaluate(own_run, pmjax.load(own_run), overrides={"eval.metrics": "latent"})
    embeddings = pmjax.load(own_run).embeddings().astype(np.float64)
    assert found["latent/var_max"] == pytest.approx(embeddings.var(0).max())
    assert sum(encoded) < len(embeddings)
