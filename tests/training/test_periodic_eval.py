"""Evaluation while a stage trains: changes nothing, continues after a stop, keeps the best."""

import io
import json
import types
from functools import partial

import jax
import numpy as np
import pytest

import pmjax
from pmjax import builders, config
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.reporting import history
from pmjax.reporting.run_log import RunLog
from pmjax.training import periodic_eval, stages
from pmjax.training.optimizers import stage1_optimizer
from pmjax.training.step import init_state
from tests.small_run import ROOT, SMALL, run_command

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)


def load_settings(**overrides):
    common = {
        "eval.every": "10",
        "eval.best": "recon/mse",
        "steps": "40",
        "nets_args.width": "8",
        "prior_args.width": "8",
        "prior_args.base_prior": "gaussian",
        "stage2.steps": "2",
        "stage2.steps_per_dispatch": "1",
        "stage2.batch_size": "4",
    }
    return config.load(str(ROOT / "configs" / "swiss_roll.py"), common | overrides)


class Run:
    """A run whose evaluations give the values that the test says."""

    def __init__(self, workdir, monkeypatch, **overrides):
        self.workdir, self.settings = workdir, load_settings(**overrides)
        self.data = types.SimpleNamespace(data=POINTS, labels=None, fingerprint="", skipped=())
        monkeypatch.setattr(builders, "dataset", lambda settings, split: self.data)
        monkeypatch.setattr(runner, "run", lambda *args, **kwargs: self.values)
        spec = builders.stage1_spec(self.settings, (3,))
        optimizer = stage1_optimizer(self.settings)
        self.state = jax.jit(partial(init_state, spec, optimizer))(jax.random.key(0))
        self.start()

    def start(self, step=0):
        """Begins, or continues from a checkpoint."""
        self.run_log = RunLog(self.workdir, stream=io.StringIO())
        self.run_log.resume("stage1", step)
        self.evaluator = periodic_eval.PeriodicEvaluator(
            periodic_eval.STAGE1,
            self.settings,
            self.workdir,
            train=self.data,
            run_log=self.run_log,
            group=ProcessGroup(),
        )

    def evaluate(self, step, value, key="recon/mse"):
        self.values = {key: value, "latent/var_min": 1.0}
        self.evaluator(self.state, step)

    @property
    def best(self):
        return json.loads((self.workdir / "best" / "best.json").read_text())["step"]

    @property
    def steps(self):
        return [row["step"] for row in history.evaluations(self.workdir)]


@pytest.fixture(scope="module")
def evaluated_run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run") / "evaluated"
    done = run_command(
        "main", *SMALL, f"--workdir={workdir}", "--config.eval.every=25",
        "--config.eval.best=recon/psnr", "--config.eval.baselines=gaussian",
        "--config.eval.during=reconstruction,sliced_wasserstein",
        "--config.eval.stage2_every=25", "--config.eval.stage2_best=sliced_w2/latent_gan",
        "--config.eval.stage2_during=sliced_wasserstein",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("stage1: evaluation of step") == 3
    assert done.stderr.count("stage2: evaluation of step") == 3
    return workdir


def test_evaluations_are_in_metrics_and_report(evaluated_run):
    metrics = json.loads((evaluated_run / "metrics.json").read_text())
    rows = metrics["training"]
    assert [(row["stage"], row["step"]) for row in rows] == [
        ("stage1", 25), ("stage1", 50), ("stage1", 60),
        ("stage2", 30), ("stage2", 50), ("stage2", 60),
    ]  # fmt: skip
    assert "sliced_w2/gaussian" in rows[0]["metrics"]
    psnr = metrics["metrics"]["recon/psnr"]
    assert rows[2]["metrics"]["recon/psnr"] == pytest.approx(psnr, rel=1e-6)
    report = (evaluated_run / "report.html").read_text()
    assert "stage1, evaluations" in report and "stage2, evaluations" in report


def test_the_best_model_is_a_workdir_of_its_own(evaluated_run):
    about = json.loads((evaluated_run / "best" / "best.json").read_text())
    rows = [row for row in history.evaluations(evaluated_run) if row["stage"] == "stage1"]
    best = max(rows, key=lambda row: row["metrics"]["recon/psnr"])
    assert (about["step"], about["by"]) == (best["step"], "recon/psnr")
    model = pmjax.load(evaluated_run / "best")
    assert model.sample(2).shape == (2, 28, 28, 1)  # its prior is trained when it is asked for
    assert (evaluated_run / "best" / "priors" / "latent_gan.msgpack").is_file()


def test_the_best_prior_is_a_workdir_of_its_own_and_gives_its_value_again(evaluated_run):
    about = json.loads((evaluated_run / "best-prior" / "best.json").read_text())
    rows = [row for row in history.evaluations(evaluated_run) if row["stage"] == "stage2"]
    best = min(rows, key=lambda row: row["metrics"]["sliced_w2/latent_gan"])
    assert about["step"] == best["step"] and len({str(row["metrics"]) for row in rows}) == 3
    own = {"eval.metrics": "sliced_wasserstein"}
    folder = evaluated_run / "best-prior"
    again = runner.evaluate(folder, pmjax.load(folder), overrides=own)
    value = best["metrics"]["sliced_w2/latent_gan"]
    assert again["sliced_w2/latent_gan"] == pytest.approx(value, rel=1e-5)


def test_training_is_the_same_with_evaluations_and_without(evaluated_run, small_run):
    assert not (small_run / "best").exists() and not history.evaluations(small_run)
    for name in ("autoencoder.msgpack", "embeddings.npy", "priors/latent_gan.msgpack"):
        assert (small_run / name).read_bytes() == (evaluated_run / name).read_bytes()


def test_the_best_survives_a_resume_from_a_checkpoint(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    for step, value in ((10, 3.0), (20, 1.0), (30, 2.0)):
        run.evaluate(step, value)
    assert run.best == 20 and run.steps == [10, 20, 30]
    run.start(20)
    assert run.steps == [10, 20]
    run.evaluator.catch_up(run.state, 20)  # which was evaluated
    run.evaluate(30, 2.0)
    assert run.best == 20 and run.steps == [10, 20, 30]
    run.evaluate(40, 0.5)
    assert run.best == 40


def test_more_is_better_of_some_values(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, **{"eval.best": "recon/psnr"})
    for step, value in ((10, 1.0), (20, 3.0), (30, 2.0)):
        run.evaluate(step, value, "recon/psnr")
    assert run.best == 20


def test_the_best_by_another_value_gives_way(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    run.evaluate(10, 0.1)
    run = Run(tmp_path, monkeypatch, **{"eval.best": "recon/psnr"})
    run.evaluate(20, 1.0, "recon/psnr")
    assert run.best == 20


@pytest.mark.parametrize("best_saved", [False, True], ids=["in the evaluation", "after the best"])
def test_an_interrupted_evaluation_is_repeated(tmp_path, monkeypatch, best_saved):
    run = Run(tmp_path, monkeypatch)
    run.evaluate(10, 2.0)
    if best_saved:
        monkeypatch.setattr(run.run_log, "scalars", lambda *args: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            run.evaluate(20, 1.0)
        assert run.best == 20
    run.start(20)
    run.values = {"recon/mse": 1.0}
    run.evaluator.catch_up(run.state, 20)
    assert run.best == 20 and run.steps == [10, 20]
    run.evaluator.catch_up(run.state, 25)  # where none is due
    assert run.steps == [10, 20]


def test_the_last_step_is_evaluated_wherever_it_falls(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, **{"eval.every": "15"})
    due = [run.evaluator.due(first, first + 4) for first in range(0, 40, 4)]
    assert [4 * i + 4 for i, each in enumerate(due) if each] == [16, 32, 40]


def test_a_value_that_no_metric_gives_is_named(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="config.eval.best.*Did you mean 'recon/mse01'"):
        run.evaluate(10, 1.0, "recon/mse01")


def test_a_joint_run_s_best_has_its_prior(tmp_path, monkeypatch):
    run = Run(tmp_path, monkeypatch, schedule="joint")
    run.evaluate(10, 1.0)
    assert run.evaluator._ctx.priors[0] == "latent_gan" and run.evaluator._ctx.has_own
    own = run.evaluator._model.sample(3, prior="latent_gan")
    np.testing.assert_array_equal(pmjax.load(tmp_path / "best").sample(3), own)


def test_untrained_priors_are_left_out_and_a_metric_of_the_run_s_own_is_refused(
    tmp_path, monkeypatch
):
    run = Run(tmp_path, monkeypatch)
    run.evaluate(10, 1.0)
    assert run.evaluator._ctx.priors == ("gaussian", "gmm")
    assert run.evaluator._ctx.draw("gmm", 5, 0).shape == (5, 3)
    with pytest.raises(UserError, match="config.eval.during"):
        run.evaluator._ctx.samples()


def test_arguments_and_protocols_of_the_config_reach_evaluations_in_training(tmp_path, monkeypatch):
    free = {"eval.fid_protocols": "50k_train", "eval.args.sliced_wasserstein.projections": "7"}
    run, seen = Run(tmp_path, monkeypatch, **free), {}
    monkeypatch.setattr(runner, "run", lambda _, ctx, args, **_k: seen.update(args) or run.values)
    run.evaluate(10, 1.0)
    assert seen["fid"] == {"protocols": ("50k_train",)}
    assert seen["sliced_wasserstein"] == {"projections": 7}


def test_evaluations_in_training_leave_out_default_metrics_that_the_data_do_not_fit(
    tmp_path, monkeypatch, caplog
):
    runner.warn_once.cache_clear()  # of other tests
    run, seen = Run(tmp_path, monkeypatch, **{"eval.best": ""}), []
    run.data.data = POINTS[:0]  # the test set
    run.evaluator._train = types.SimpleNamespace(data=POINTS, labels=None)
    monkeypatch.setattr(runner, "run", lambda names, *_, **_k: seen.append(names) or run.values)
    run.evaluate(10, 1.0)
    run.evaluate(20, 1.0)
    assert seen == [("latent",)] * 2
    assert caplog.text.count("'reconstruction' needs at least 1 test examples, not 0") == 1


FID = {"eval.during": "fid", "eval.fid_protocols": "2k_test"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.during": "sliced_wasserstein", "eval.best": "sliced_w2/latent_gan"},
         "'latent_gan' while stage 1 trains, and stage 2 trains it later.*gaussian, gmm"),
        ({"eval.during": "sliced_wasserstein", "eval.best": "sliced_w2/knn_jitter"},
         "config.eval.baselines does not name it"),
        ({"eval.stage2_every": "5", "eval.stage2_during": "sliced_wasserstein",
          "eval.stage2_best": "sliced_w2/gmm"},
         "'gmm' while stage 2 trains, and only the run's own prior is evaluated then.*latent_gan"),
        ({"eval.stage2_every": "5", "schedule": "joint"}, "there is no such stage with.*'joint'"),
        ({"eval.during": "wasserstein", "eval.best": "w2/gaussian"},
         "config.eval.during has wasserstein, which needs the run's own prior"),
        (FID | {"eval.best": "fid/10k_test/pytorch_fid/gaussian"},
         "Unknown protocol of metric 'fid'.*Did you mean '2k_test'"),
        (FID | {"eval.best": "fid/2k_test/clean_fid/gaussian"}, "Unknown variant.*pytorch_fid"),
        (FID | {"eval.best": "", "eval.fid_protocols": "2k_tests"}, "'2k_tests' is not a protocol"),
        (FID | {"eval.best": "", "eval.inception_weights": "no.pth"}, "no weights file no.pth"),
        ({"eval.every": "0", "eval.best": "", "eval.metrics": "kid",
          "eval.inception_weights": "no.pth"}, "no weights file no.pth"),
    ],
)  # fmt: skip
def test_evaluations_that_cannot_be_are_refused_before_training(
    tmp_path, monkeypatch, overrides, message
):
    monkeypatch.setattr(builders, "dataset", lambda *_: pytest.fail("data are read"))
    settings = load_settings(**overrides)
    with pytest.raises(UserError, match=message):
        stages.fit(settings, tmp_path, RunLog(tmp_path, stream=io.StringIO()), ProcessGroup())


@pytest.mark.parametrize(
    "overrides",
    [
        {"eval.during": "sliced_wasserstein", "eval.best": "sliced_w2/gaussian"},
        {"eval.during": "wasserstein", "eval.best": "w2/latent_gan", "schedule": "joint"},
        {
            "eval.stage2_every": "5",
            "eval.stage2_during": "wasserstein",
            "eval.stage2_best": "w2/latent_gan",
        },
    ],
)
def test_evaluations_that_can_be_are_not_refused(overrides):
    stages.validate(load_settings(**{"eval.metrics": "latent"} | overrides))
