"""Reproductions: what is run, what is skipped, what stands in the tables, and the theory."""

import functools
import json
import math
import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from scipy import integrate, optimize, stats

from pmjax import builders, plugins
from pmjax.errors import UserError
from pmjax.reproductions import jobs, tables, theory
from pmjax.reproductions.base import Column, Reproduction, Run, Study
from pmjax.reproductions.runner import reproduce, select
from pmjax.training.optimizers import stage1_optimizer
from pmjax.training.step import init_state
from tests.readme_example import import_example
from tests.small_run import ROOT, run_command

NAMES = plugins.names("reproductions")
SHAPES = {
    "swiss_roll": (3,), "digits": (28, 28, 1), "fashion_mnist": (28, 28, 1),
    "celeba": (64, 64, 3), "cifar10": (32, 32, 3),
}  # fmt: skip
RUNS = (
    Run(name="vae", label="VAE", method="vae", also=("gmm",)),
    Run(name="pm", label="ours", method="pm"),
)
COLUMNS = (
    Column(title="MSE", key="recon/mse", paper={"vae": 0.04}, protocol="their protocol"),
    Column(title="FD", key="fd/{prior}"),
    Column(title="ratio", key="fd/{prior}", over="fd/floor"),
)


def results(study):
    yield study.table("Table", COLUMNS, "A note.")


@pytest.fixture
def study(tmp_path):
    reproduction = Reproduction(title="A <title>", results=results, config="digits.py", runs=RUNS)
    return Study(
        reproduction=reproduction,
        directory=tmp_path,
        runs=RUNS,
        seeds=(0, 1, 2),
        configs=ROOT / "configs",
    )


def put_metrics(where, **metrics):
    where.mkdir(parents=True, exist_ok=True)
    metrics = {name.replace("__", "/"): value for name, value in metrics.items()}
    (where / "metrics.json").write_text(json.dumps({"metrics": metrics}))


class Process:
    """Stands for a run's process: ends with `status`, having written metrics if that is 0."""

    def __init__(self, job, status=0):
        self.status, self.signals = status, []
        if status == 0:
            put_metrics(job.workdir, recon__mse=1.0)
        elif status is not None:
            job.log.parent.mkdir(parents=True, exist_ok=True)
            job.log.write_text("stage1 5/10\n\nError: stage1: loss is nan\nat step 7.\n")

    def poll(self):
        return self.status

    def send_signal(self, number):
        self.signals.append(number)

    def wait(self, timeout):
        return 0


def starter(started, statuses=None):
    def start(job, slot):
        started.append((job.run.name, job.seed, slot))
        return Process(job, (statuses or {}).get((job.run.name, job.seed), 0))

    return start


def work(study, start, **args):
    jobs.work(study, jobs.plan(study), start=start, poll_every=0, **args)


def test_a_table_has_mean_spread_every_seed_and_the_papers_value(study):
    for seed, mse in enumerate((0.010, 0.012, 0.017)):
        put_metrics(
            study.workdir(RUNS[0], seed),
            recon__mse=mse,
            fd__standard_normal=80.0,
            fd__gmm=40.0 + seed,
            fd__floor=20.0,
        )
    tables.write(study, list(results(study)), [], command="the command")
    content = json.loads((study.directory / "table.json").read_text())
    first, second, third = content["tables"][0]["rows"]
    assert first["method"] == "VAE" and first["prior"] == "standard_normal"
    assert second["prior"] == "gmm" and third["method"] == "ours"
    mse = first["values"]["MSE"]
    assert mse["seeds"] == {"0": 0.010, "1": 0.012, "2": 0.017}
    assert mse["mean"] == pytest.approx(0.013)
    assert mse["spread"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2) * 1e-3)
    assert mse["paper"] == {"value": 0.04, "protocol": "their protocol"}
    assert second["values"]["ratio"]["mean"] == pytest.approx(41 / 20)
    assert second["values"]["MSE"] == {"seeds": {}}  # the autoencoder's stands in its first row
    lines = (study.directory / "table.md").read_text().splitlines()
    assert "| VAE | standard_normal | 0.0130 ± 0.0036 | 0.04 | 80 | 4 |" in lines
    assert "| VAE | gmm | — | — | 41.0 ± 1.0 | 2.050 ± 0.050 |" in lines


def test_missing_and_failed_runs_are_named_everywhere(study):
    put_metrics(study.workdir(RUNS[0], 1), recon__mse=0.5)
    put_metrics(study.workdir(RUNS[0], 2), recon__mse=0.7)  # of an earlier, other evaluation
    study.failures["vae", 2] = "failed: <nan>"
    tables.write(study, list(results(study)), [], command="command")
    text = (study.directory / "table.md").read_text()
    assert "| VAE | standard_normal | 0.5 (1 of 3 seeds) |" in text
    for line in ("vae, seed 0: not run yet", "vae, seed 2: failed: <nan>", "pm, seed 0: not run"):
        assert f"- {line}" in text
    assert "No finished run has the metric of: FD ('fd/{prior}'), ratio (" in text
    missing = json.loads((study.directory / "table.json").read_text())["missing"]
    assert len(missing) == 5 and {"run": "vae", "seed": 2, "why": "failed: <nan>"} in missing
    page = (study.directory / "report.html").read_text()
    assert "failed: &lt;nan&gt;" in page and "<nan>" not in page and "A &lt;title&gt;" in page


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((57.0, 64.9, 56.3), "59.4 ± 4.8"),
        ((360.0, 375.0, 345.0), "360 ± 15"),
        ((0.5,), "0.5 (1 of 3 seeds)"),
        ((2.0, 2.0, 2.0), "2"),
        ((), "—"),
    ],
)
def test_values_are_shown_to_two_digits_of_their_spread(values, text):
    assert tables.format_values(dict(enumerate(values)), (0, 1, 2)) == text


def test_finished_runs_are_skipped_and_others_tried_again(study):
    started = []
    work(study, starter(started, {("pm", 1): 2}), slots=2)
    assert len(started) == 6 and {slot for *_, slot in started} == {0, 1}
    assert started[0][:2] == ("vae", 0) and started[1][:2] == ("pm", 0)  # seed by seed
    assert study.failures == {
        ("pm", 1): "failed: status 2: stage1: loss is nan at step 7. "
        f"(log: {study.directory}/logs/pm-seed1.log)"
    }
    study.failures.clear()
    again = []
    work(study, starter(again))
    assert again == [("pm", 1, 0)] and not study.failures


def test_a_run_is_evaluated_again_when_the_evaluation_changes(study):
    work(study, starter([]))
    started = []
    study.overrides["eval.num_samples"] = "10"
    work(study, starter(started))
    assert len(started) == 6


def test_a_run_stays_finished_when_a_key_is_new_and_changes_nothing(study):
    settings = study.settings(RUNS[0], 0)
    earlier = ConfigDict(settings.to_dict())
    del earlier.eval["stage2_every"], earlier["precision"]
    assert jobs.digest(earlier) == jobs.digest(settings)
    earlier.eval.stage2_every = 5
    assert jobs.digest(earlier) != jobs.digest(settings)


def test_a_run_that_ends_well_without_metrics_has_failed(study):
    put_metrics(study.workdir(RUNS[0], 0), recon__mse=1.0)
    old = study.workdir(RUNS[0], 0) / "metrics.json"
    os.utime(old, (1, 1))
    one = jobs.plan(study)[:1]
    jobs.work(study, one, start=lambda job, slot: SimpleNamespace(poll=lambda: 0), poll_every=0)
    assert "without metrics.json" in study.failures["vae", 0]


def test_runs_of_another_config_are_refused_before_anything_starts(study):
    from pmjax import config

    where = study.workdir(RUNS[1], 2)
    where.mkdir(parents=True)
    config.save(study.settings(RUNS[1], 2), where / "config.json")
    jobs.plan(study)
    study.overrides["steps"] = "7"
    with pytest.raises(UserError, match=r"belongs to another config:\n.*config.steps: 2000 there"):
        jobs.plan(study)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_tells_the_runs_to_stop_and_is_passed_on(study, monkeypatch, number):
    monkeypatch.setattr(signal, "getsignal", lambda _: signal.SIG_DFL)  # also under nohup
    processes = []

    def start(job, slot):
        processes.append(Process(job, status=None))
        if len(processes) == 2:
            threading.Timer(0.05, lambda: signal.raise_signal(number)).start()
        return processes[-1]

    with pytest.raises(KeyboardInterrupt):
        jobs.work(study, jobs.plan(study), slots=2, start=start, poll_every=0.01)
    assert [process.signals for process in processes] == [[signal.SIGTERM]] * 2


def test_a_platform_that_is_not_there_is_refused_before_the_first_run(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "oddity")
    done = SimpleNamespace(returncode=2, stderr="\nError: JAX finds no device.\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    with pytest.raises(UserError, match="^JAX finds no device.$"):
        reproduce("swiss_roll", tmp_path / "study", runlocal=True)
    assert not (tmp_path / "study").exists()


def test_a_second_reproduction_in_a_directory_is_refused_while_a_run_lives(tmp_path):
    with jobs.locked(tmp_path) as lock:
        orphan = subprocess.Popen(
            [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(lock,)
        )
    with pytest.raises(UserError, match="works in"), jobs.locked(tmp_path):
        pytest.fail("the lock was given twice")
    orphan.communicate(b"\n")
    with jobs.locked(tmp_path) as lock:
        assert lock >= 0


def test_each_job_gets_a_gpu_or_its_part_of_one(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    shares = [jobs.share_of_gpus(slot, 4) for slot in range(4)]
    assert [share["CUDA_VISIBLE_DEVICES"] for share in shares] == ["3", "5", "3", "5"]
    assert {share["XLA_PYTHON_CLIENT_MEM_FRACTION"] for share in shares} == {"0.45"}
    assert jobs.share_of_gpus(0, 1) == {}


@pytest.mark.parametrize("name", NAMES)
def test_every_run_of_every_reproduction_has_a_valid_config_and_nets(name, tmp_path):
    reproduction = plugins.load("reproductions", name).REPRODUCTION
    assert len({run.name for run in reproduction.runs}) == len(reproduction.runs)
    traced = set()
    for runlocal in (False, True):
        study = Study(
            reproduction=reproduction,
            directory=tmp_path,
            runs=reproduction.runs,
            seeds=(3,),
            configs=ROOT / "configs",
            runlocal=runlocal,
        )
        for job in jobs.plan(study):
            settings = study.settings(job.run, 3)
            assert settings.seed == 3 and settings.method == job.run.method
            spec = builders.stage1_spec(settings, SHAPES[settings.data.name])
            if str(spec.nets) not in traced:  # the same nets are traced once
                traced.add(str(spec.nets))
                optimizer = stage1_optimizer(settings)
                jax.eval_shape(functools.partial(init_state, spec, optimizer), jax.random.key(0))
    if reproduction.runs:
        table = next(iter(reproduction.results(study)))
        assert len(table.rows) >= len(reproduction.runs)
        for column in table.columns:
            assert set(column.paper) <= {run.name for run in reproduction.runs}


def test_readme_example(tmp_path, monkeypatch):
    module = import_example("pmjax.reproductions", tmp_path, monkeypatch)
    assert "noise" in plugins.names("reproductions")
    study = reproduce("noise", tmp_path, report_only=True)
    assert [run.name for run in study.runs] == ["ae", "vae"]
    assert len(study.missing()) == len(jobs.plan(study)) == 6
    monkeypatch.setattr(module, "image_strips", lambda study: iter(()))  # there are no models
    for run, seed, _ in study.missing():
        put_metrics(study.workdir(run, seed), recon__mse=0.25)
    assert reproduce("noise", tmp_path, report_only=True).missing() == []
    assert "| VAE | standard_normal | 0.25 |" in (tmp_path / "table.md").read_text()


def test_mistakes_are_answered_with_the_nearest_name(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'swiss_roll'"):
        reproduce("swisroll", tmp_path)
    with pytest.raises(UserError, match="Did you mean 'vae'"):
        select(RUNS, "pm,vaee")
    with pytest.raises(UserError, match="Run 'vae'.*Did you mean 'config.steps'"):
        reproduce("digits", tmp_path, methods="vae", overrides={"stepz": "1"})
    with pytest.raises(UserError, match="--seeds"):
        reproduce("digits", tmp_path, overrides={"seed": "1"})
    with pytest.raises(UserError, match="omit --config.steps"):
        reproduce("theory", tmp_path, overrides={"steps": "1"})
    assert not list(tmp_path.iterdir())


def test_kl_of_gaussians_is_its_integral():
    mean, variance = 0.7, 0.3
    q, p = stats.norm(mean, variance**0.5), stats.norm()
    integral = integrate.quad(lambda z: q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), -6, 6)[0]
    assert theory.gaussian_kl(mean, variance) == pytest.approx(integral, abs=1e-9)


@pytest.mark.parametrize("v", [0.8, 0.2, 0.01])
def test_the_linear_optimum_agrees_with_a_search(v):
    def objective(parameters):
        w, a, log_s2 = parameters
        s2, var = np.exp(log_s2), 1 / 3
        error = (1 - w * a) ** 2 * var + w**2 * s2
        return error + v * (a**2 * var + s2 - 1 - log_s2)

    found = optimize.minimize(objective, (0.4, 0.8, -0.5), tol=1e-12)
    optimum = theory.linear(v)
    assert objective((optimum["w"], optimum["a"], np.log(optimum["s2"]))) == pytest.approx(
        found.fun, abs=1e-7
    )
    assert optimum["mse"] + 2 * v * optimum["kl"] == pytest.approx(found.fun, abs=1e-7)


def test_forcing_kl_to_zero_loses_reconstruction_and_reconstruction_drives_kl_up():
    collapsed = theory.linear(1 / 3)
    assert collapsed["kl"] == collapsed["sup_kl"] == collapsed["w"] == 0
    assert collapsed["mse"] == pytest.approx(1 / 3)
    sups = [theory.linear(v)["sup_kl"] for v in np.geomspace(0.3, 1e-12, 30)]
    assert np.all(np.diff(sups) > 0) and sups[-1] > 14


def test_nothing_is_below_the_bound_and_intervals_come_near_it():
    for v in np.geomspace(1, 1e-6, 20):
        optimum = theory.linear(v)
        assert theory.bound(optimum["mse"]) <= optimum["kl"] + 1e-12 <= optimum["sup_kl"] + 1e-9
    for num in (2, 5, 1000):
        mse, kl = theory.disjoint(num)
        assert kl - theory.bound(mse) == pytest.approx(np.log(2 * np.pi * np.e / 12) / 2)


def test_quadrature_measures_a_linear_vae_as_the_closed_form_does():
    optimum = theory.linear(0.1)
    scale = 1e-3  # tanh is linear there
    hidden = [
        (jnp.zeros((1, theory.WIDTH)).at[0, 0].set(scale), jnp.zeros(theory.WIDTH)),
        (jnp.zeros((theory.WIDTH,) * 2).at[0, 0].set(1.0), jnp.zeros(theory.WIDTH)),
    ]
    last = jnp.zeros((theory.WIDTH, 2)).at[0, 0].set(optimum["a"] / scale)
    G = jnp.zeros((theory.WIDTH, 1)).at[0, 0].set(optimum["w"] / scale)
    E = [*hidden, (last, jnp.array([0.0, np.log(optimum["s2"])]))]
    found = jax.jit(theory.measure)({"E": E, "G": [*hidden, (G, jnp.zeros(1))]})
    for name in ("mse", "kl", "sup_kl"):
        assert float(found[name]) == pytest.approx(optimum[name], rel=2e-3)
    assert float(found["spread"]) == pytest.approx(optimum["w"], rel=2e-3)


def test_a_short_optimization_collapses_above_the_variance_and_not_below():
    params = theory.optimize(jnp.array([1.0, 0.02]), jax.random.key(0), steps=300)
    found = jax.vmap(theory.measure)(params)
    assert float(found["mse"][0]) == pytest.approx(1 / 3, abs=0.01)
    assert float(found["sup_kl"][0]) < 0.05
    assert float(found["mse"][1]) < 0.06 and float(found["kl"][1]) > 0.8
    assert np.all(np.asarray(found["kl"]) >= theory.bound(found["mse"]) - 1e-3)


@pytest.mark.slow
def test_one_method_goes_all_the_way_from_the_command_to_the_report(tmp_path):
    command = ("reproduce", "swiss_roll", "--runlocal", "--methods=vae", f"--workdir={tmp_path}")
    small = (
        "--config.steps=20",
        "--config.eval.metrics=reconstruction",
        "--config.eval.baselines=",
    )
    first = run_command(*command, *small)
    assert first.returncode == 0, first.stderr
    assert "vae seed 0: finished" in first.stderr
    table = json.loads((tmp_path / "table.json").read_text())["tables"][0]
    assert table["rows"][0]["values"]["MSE"]["seeds"].keys() == {"0"}
    for name in ("manifolds.png", "latents.png"):
        assert (tmp_path / "figures" / name).stat().st_size > 10_000
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 2 and "A smoke run" in page
    assert (tmp_path / "runs" / "vae" / "seed0" / "report.html").is_file()
