"""Eight CPU devices for the tests of sharding, and one small trained run that tests share."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from pmjax import soak

jax.config.update("jax_num_cpu_devices", 8)

ROOT = Path(__file__).parents[1]

# A whole run of seconds: perceptrons on digits.
SMALL = [
    "--config=configs/digits.py:runlocal",
    "--config.nets=mlp",
    "--config.nets_args.width=32",
    "--config.latent_dim=8",
    "--config.prior_args.width=32",
    "--config.steps=60",
    "--config.stage2.steps=60",
    "--config.stage2.steps_per_dispatch=10",
    "--config.checkpoint.every=10",
    "--config.log_every=5",
    "--config.eval.metrics=reconstruction,latent",
    "--config.eval.num_samples=64",
]


# Modules that take long, the longest first, so that no process ends alone with one of them.
LONG = ("step", "run", "hosts", "twin", "colab", "bench", "priors_trained", "faults_kill")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of long modules first."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


def run_command(module: str, *args: str, **options) -> subprocess.CompletedProcess:
    """Runs python -m pmjax.MODULE to its end, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", f"pmjax.{module}", *map(str, args)],
        cwd=ROOT,
        env=os.environ | options.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )


@pytest.fixture(scope="session")
def small_run(tmp_path_factory) -> Iterator[Path]:
    """The workdir of a finished small run, which all tests read and none changes."""
    workdir = tmp_path_factory.mktemp("run") / "small"
    done = run_command("main", *SMALL, "--config.profile=20:2", f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    left = soak.results(workdir)
    yield workdir
    assert soak.results(workdir) == left, "a test has changed what all share"


@pytest.fixture
def own_run(small_run, tmp_path) -> Path:
    """A copy of the small run, to be changed."""
    return shutil.copytree(small_run, tmp_path / "own")
