"""Eight CPU devices for the tests of sharding, and one small trained run that tests share."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from tests import soak
from tests.small_run import SMALL, run_command

jax.config.update("jax_num_cpu_devices", 8)

# Modules that take long, the longest first, so that no process ends alone with one of them.
LONG = ("step", "run", "hosts", "twin", "colab", "bench", "priors_trained", "faults_kill")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of long modules first."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=place)


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
