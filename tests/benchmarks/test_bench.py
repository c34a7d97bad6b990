"""The benchmark's output and its messages; no number that depends on time."""

import json
import math
import re

import numpy as np
import pytest

from pmjax import bench, config, plugins
from pmjax.benchmarks import evaluation, process
from pmjax.errors import UserError
from tests.readme_example import import_example
from tests.small_run import run_command

TINY = [
    "--config=configs/digits.py",
    "--config.nets=mlp",
    "--config.nets_args.width=16",
    "--config.latent_dim=8",
    "--config.prior_args.width=16",
    "--config.data.batch_size=32",
    "--config.stage2.batch_size=16",
    "--config.stage2.steps_per_dispatch=3",
    "--seconds=0.05",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "bench.json"
    done = run_command("bench", *TINY, "--peer=torch", f"--json={path}")
    assert done.returncode == 0, done.stderr
    return json.loads(path.read_text()), done.stdout


@pytest.mark.slow
def test_both_stages_are_measured_on_both_sides(results):
    report, text = results
    assert report["stages"].keys() == {"1", "2"}
    assert report["cores"] >= 1 and report["config"]["data"]["name"] == "digits"
    for stage, size, per_dispatch in (("1", 32, 1), ("2", 16, 3)):
        result = report["stages"][stage]
        assert result["batch_size"] == size and result["steps_per_dispatch"] == per_dispatch
        for side in (result["pmjax"], result["torch"]):
            assert len(side["blocks_ms"]) == process.BLOCKS
            assert 0 < side["step_ms_low"] <= side["step_ms"] <= side["step_ms_high"]
            assert math.isclose(side["images_per_s"], 1e3 * size / side["step_ms"])
            assert side["steps"] >= process.BLOCKS and side["threads"] >= 1
        assert result["pmjax"]["steps"] % per_dispatch == 0
        assert result["pmjax"]["compile_s"] > 0 and result["torch"]["compile_s"] is None
        assert result["pmjax"]["versions"]["jax"] and result["torch"]["versions"]["torch"]
        assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
        assert f"stage {stage}" in text


@pytest.mark.slow
def test_both_sides_make_the_same_first_step(results):
    report, _ = results
    after_adam = ("loss/latent_generator", "fool/mix", "fool/recon", "loss/autoencoder")
    for result in report["stages"].values():
        ours, theirs = result["pmjax"]["first"], result["torch"]["first"]
        assert {name for name in ours if "grad_norm" not in name} == theirs.keys()
        for name, value in theirs.items():
            # The second objective's loss follows an update by Adam, which magnifies round-off.
            tolerance = 1e-3 if name in after_adam else 1e-5
            assert math.isclose(ours[name], value, rel_tol=tolerance, abs_tol=tolerance), name
        assert result["first_differs"] < 1e-3


@pytest.mark.slow
def test_evaluation_is_measured_on_both_sides(tmp_path, monkeypatch, capsys):
    path = tmp_path / "bench.json"
    small = {"BATCH": 2, "SIDE": 20, "SIZE": 400, "DIM": 24}
    for name, value in small.items():
        monkeypatch.setattr(evaluation, name, value)
    monkeypatch.setattr(process, "PAUSE", 0)
    monkeypatch.setattr(process, "BLOCKS", 2)
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")  # compiles sooner
    arguments = ["--evaluation", "--peer=torch", "--seconds=0", f"--json={path}"]
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    bench.main()
    report, text = json.loads(path.read_text()), capsys.readouterr().out
    features, distance = report["evaluation"]["features"], report["evaluation"]["frechet"]
    assert report["arguments"] == arguments and features["batch_size"] == 2
    for side in (features["pmjax"], features["torch"]):
        assert side["images"] == 2 * len(side["blocks_ms"])
        assert 0 < side["images_per_s_low"] <= side["images_per_s"] <= side["images_per_s_high"]
    assert features["pmjax"]["compile_s"] > 0 and features["differs"] < 1e-4
    for side in (distance["pmjax"], distance["scipy"]):
        assert 0 < side["seconds_low"] <= side["seconds"] <= side["seconds_high"]
        assert side["distance"] > 0 and side["versions"]["scipy"]
    assert distance["features"] == 400 and distance["differs"] < 1e-6
    for result in (features, distance):
        assert result["ratio"]["low"] <= result["ratio"]["median"] <= result["ratio"]["high"]
    assert text.count("times as fast as") == 2


def test_readme_example(tmp_path, monkeypatch):
    room = "pmjax.benchmarks.peers"
    peer = import_example(room, tmp_path, monkeypatch, readme="pmjax/benchmarks/README.md")
    assert "numpy_copy" in plugins.names("peers")
    settings = config.load("configs/digits.py", {"data.batch_size": "8"})
    side = peer.TrainingStep(settings, stage=1, start={}, gpu=False, cores=1)
    assert side.about.threads == 1 and np.isfinite(side.about.first["mean"])
    assert side.block(0).units == 1


@pytest.mark.parametrize("arguments, message", [
    (["--peer=tensorflow"], "Unknown peer 'tensorflow'"),
    (["--json=nowhere/at/all.json"], "there is no directory nowhere/at"),
    (["--config.data.batch_sise=8"], "data.batch_size"),
    (["--evaluation"], "omit --config, --config.nets, "),
    (["--config.stage2.batch_size=7", "--config.stage2.devices=2", "--config.devices=2",
      "--stage=2"], "config.stage2.batch_size=7"),
])  # fmt: skip
def test_mistakes_are_reported_in_one_message(monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["bench", *TINY, *arguments])
    with pytest.raises(UserError, match=re.escape(message)):
        bench.main()


@pytest.mark.parametrize("arguments, message", [
    (["--evaluation", "--aot=v5e:2x2", "--stage=1"], "omit --stage, --aot, or"),
    (["--peer=torch"], "Specify what to measure"),
])  # fmt: skip
def test_incompatible_flags_are_refused(monkeypatch, arguments, message):
    monkeypatch.setattr("sys.argv", ["bench", *arguments])
    with pytest.raises(UserError, match=message):
        bench.main()


def test_the_error_for_a_missing_framework_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("sys.argv", ["bench", "--config=configs/digits.py", "--peer=torch"])
    with pytest.raises(UserError, match=r'pip install "pmjax\[bench\]"'):
        bench.main()


@pytest.mark.parametrize("reference, overrides, why", [
    ("configs/digits.py:author", {}, "joint"),
    ("configs/digits.py", {"prior": "gmm"}, "'gmm' is fitted"),
])  # fmt: skip
def test_configs_without_a_second_stage_to_measure(reference, overrides, why):
    settings = config.load(reference, overrides)
    assert bench._stages("both", settings) == [1]
    with pytest.raises(UserError, match=why):
        bench._stages("2", settings)
