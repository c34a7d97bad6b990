"""The stages' options come from their groups of the config; functions of the room are short."""

import ast

import numpy as np
import pytest

from pmjax import builders, config
from pmjax.datasets.base import Dataset
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.storage.workdir import write_embeddings
from pmjax.training import stages
from tests.small_run import ROOT

MODULES = sorted((ROOT / "pmjax" / "training").glob("*.py"))


def test_each_stage_takes_its_own_group_of_the_config():
    overrides = {
        "steps": "7",
        "data.batch_size": "8",
        "profile": "3:2",
        "stage2.steps": "9",
        "stage2.batch_size": "16",
        "stage2.steps_per_dispatch": "4",
        "skip_nonfinite": "5",
        "data.device_budget_gb": "2",
    }
    settings = config.load(str(ROOT / "configs" / "digits.py"), overrides)
    first, second = stages.stage1_options(settings), stages.stage2_options(settings)
    assert (first.stage, first.steps, first.batch_size, first.profile) == ("stage1", 7, 8, (3, 2))
    assert (second.stage, second.steps, second.batch_size) == ("stage2", 9, 16)
    assert (second.steps_per_dispatch, second.profile) == (4, None)
    for options in (first, second):
        assert (options.skip_nonfinite, options.device_budget) == (5, 2e9)
    assert stages.stage2_options(settings, "realnvp").stage == "realnvp"


def few(monkeypatch, num_train, num_test, labels=False, **overrides):
    """Checks the data of a run on so many images."""

    def dataset(settings, split):
        num = num_train if split == "train" else num_test
        return Dataset(
            np.zeros((num, 8, 8, 1), np.uint8), np.zeros(num, int) if labels else None, ""
        )

    monkeypatch.setattr(builders, "dataset", dataset)
    settings = config.load(str(ROOT / "configs" / "image_folder.py"), overrides)
    stages.validate_data(settings, dataset(settings, "train"))


@pytest.mark.parametrize(
    ("num_train", "overrides", "message"),
    [
        (1, {}, "latent BatchNorm needs at least 2 training examples, not 1"),
        (1, {"method": "vae"}, "Prior 'latent_gan' needs at least 2 training examples, not 1"),
        (1, {"method": "vae", "prior": "standard_normal"}, "'gaussian' needs .*baselines"),
        (1, {"method": "vae", "prior": "standard_normal", "eval.baselines": "gmm"}, "'gmm' needs"),
        (50, {"eval.metrics": "kd"}, "4 test .*, not 3. Leave it out of --config.eval.metrics"),
        (50, {"eval.metrics": "kmeans"}, "needs a class for every example"),
        (50, {"eval.metrics": "wasserstein,topology"}, "at least 25 test examples.*neighbours=12"),
        (50, {"eval.every": "5", "eval.during": "c2st"}, "4 test .*out of --config.eval.during"),
        (50, {"eval.stage2_every": "5", "eval.stage2_during": "is_efficientnet_lite0",
              "eval.num_samples": "9"}, "10 samples .--config.eval.num_samples., not 9"),
    ],
)  # fmt: skip
def test_data_that_are_too_few_are_refused_before_training(
    monkeypatch, num_train, overrides, message
):
    with pytest.raises(UserError, match=message):
        few(monkeypatch, num_train, 3, **overrides)


def test_classes_that_are_all_alike_are_refused_before_training(monkeypatch):
    with pytest.raises(UserError, match="needs at least two classes in the training set"):
        few(monkeypatch, 50, 3, labels=True, **{"eval.metrics": "linear_probe"})


def test_default_metrics_that_few_test_images_do_not_fit_are_left_out_with_one_warning(
    monkeypatch, caplog
):
    runner.warn_once.cache_clear()  # of other tests
    few(monkeypatch, 2, 1, **{"eval.stage2_every": "5"})
    assert caplog.text.count("'fd_efficientnet_lite0' needs at least 2 test examples") == 1
    assert "reconstruction" not in caplog.text
    with pytest.raises(UserError, match="'fd_efficientnet_lite0' needs at least 2"):
        best = {"eval.stage2_best": "fd_efficientnet_lite0/latent_gan"}
        few(monkeypatch, 2, 1, **{"eval.stage2_every": "5"}, **best)


@pytest.mark.parametrize("name", ["gmm", "knn_jitter", "realnvp"])
def test_a_prior_at_its_first_use_takes_the_embeddings_that_it_declares(
    monkeypatch, tmp_path, name
):
    settings = config.load(str(ROOT / "configs" / "digits.py"))
    monkeypatch.setattr(type(builders.prior(settings, name)), "min_embeddings", 2)
    write_embeddings(tmp_path, np.zeros((1, 64), np.float32))
    with pytest.raises(UserError, match=f"'{name}' needs at least 2 training examples, not 1"):
        stages.fit_prior(settings, tmp_path, name)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_function_has_more_than_100_lines(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 100, f"{path.name}: {node.name}"
