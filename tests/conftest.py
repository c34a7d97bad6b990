"""One compilation cache and eight CPU devices for all tests, and a small trained run they share."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

# Before JAX is imported. Workers of pytest-xdist and commands that tests start inherit it all.
OWN_CACHE = not {"PYTEST_XDIST_WORKER", "JAX_COMPILATION_CACHE_DIR"} & set(os.environ)
if OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="pmjax-tests-")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

import jax  # noqa: E402

from tests import soak  # noqa: E402
from tests.small_run import SMALL, run_command  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)

# Modules that take long, the longest first, so that no worker ends alone with one of them.
LONG = (
    "faults_disk", "faults_kill", "processes", "notebooks", "twin", "bench", "run", "step",
    "methods", "periodic_eval", "faults_numbers", "snapshots", "priors_trained", "mimicry",
    "old_workdir", "reproduce", "metrics", "efficientnet_lite0", "config",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the tests of long modules first."""

    def rank(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return LONG.index(name) if name in LONG else len(LONG)

    items.sort(key=rank)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Escapes what is not UTF-8 in recorded output, such as odd file names: xdist rejects it."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report


def pytest_unconfigure() -> None:
    """Deletes the compilation cache."""
    if OWN_CACHE:
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[Path]:
    """The workdir of a finished small run, which all tests read and none changes."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent  # which all workers share
    workdir = base / "small"
    with open(base / "small.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (workdir / "report.html").exists():
            done = run_command("main", *SMALL, "--config.profile=20:2", f"--workdir={workdir}")
            assert done.returncode == 0, done.stderr
    before = soak.results(workdir)
    yield workdir
    assert soak.results(workdir) == before, "a test changed the workdir that all tests share"


@pytest.fixture
def own_run(small_run: Path, tmp_path: Path) -> Path:
    """A copy of the small run, which the test may change."""
    return shutil.copytree(small_run, tmp_path / "own")
