import os
import subprocess
import sys

import jax
import pytest

import pmjax
from pmjax.distributed import accelerators
from pmjax.distributed.mesh import make_mesh
from pmjax.errors import UserError


@pytest.fixture(autouse=True)
def not_started(monkeypatch):
    """Lets each test start JAX again, with no platform asked for."""
    for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_platforms
    jax.config.update("jax_platforms", None)
    accelerators.start.cache_clear()
    yield
    jax.config.update("jax_platforms", before)
    accelerators.start.cache_clear()


@pytest.fixture
def absent(monkeypatch):
    """Makes JAX fail as for a platform that is not there."""

    def devices():
        raise RuntimeError("Unable to initialize backend 'x': not known (set JAX_PLATFORMS='')")

    monkeypatch.setattr(jax, "devices", devices)


@pytest.fixture
def warnings_on(tmp_path, caplog, monkeypatch):
    """Returns the warnings of a start on a machine that has the device files of some names."""
    known = [
        each._replace(files=tuple(str(tmp_path / file.rpartition("/")[2]) for file in each.files))
        for each in accelerators.KNOWN
    ]
    monkeypatch.setattr(accelerators, "KNOWN", known)

    def start(*names):
        for name in names:
            (tmp_path / name).touch()
        accelerators.start()
        return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]

    return start


@pytest.mark.parametrize(
    "platform, install",
    [("cuda", "pmjax[cuda13]"), ("gpu", "pmjax[cuda13]"), ("tpu", "pmjax[tpu]"), ("oddity", "")],
)
def test_a_platform_that_is_not_there_is_named_with_the_way_out(absent, platform, install):
    jax.config.update("jax_platforms", platform)
    with pytest.raises(UserError) as error:
        accelerators.start()
    message = str(error.value)
    for part in (f"JAX_PLATFORMS='{platform}'", "not known)", "JAX_PLATFORMS=cpu", install):
        assert part in message
    assert ("pip install" in message) == bool(install)


def test_the_older_variable_is_named_where_it_was_used(absent, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORM_NAME", "gpu")
    with pytest.raises(UserError, match="JAX_PLATFORM_NAME='gpu'.*JAX_PLATFORM_NAME=cpu"):
        accelerators.start()


def test_models_and_meshes_start_jax_before_anything_else(absent):
    jax.config.update("jax_platforms", "tpu")
    for use in (lambda: pmjax.Model(None, {}), make_mesh):
        with pytest.raises(UserError, match="JAX_PLATFORMS='tpu'"):
            use()


def test_a_command_ends_with_one_message_where_cuda_is_absent():
    call = (
        "from pmjax import cli; from pmjax.distributed import accelerators as a; cli.run(a.start)"
    )
    env = os.environ | {"JAX_PLATFORMS": "cuda"}
    done = subprocess.run([sys.executable, "-c", call], env=env, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("\nError: JAX finds no device with JAX_PLATFORMS='cuda'")
    assert done.stderr.count("\n") == 2


@pytest.mark.parametrize(
    "file, expected",
    [("nvidia0", "cuda13"), ("accel0", "pmjax[tpu]"), ("3", "pmjax[tpu]"), ("kfd", "an AMD GPU")],
)
def test_an_unused_accelerator_is_a_warning_with_what_to_install(
    tmp_path, warnings_on, file, expected
):
    (said,) = warnings_on(file)
    assert expected in said and str(tmp_path / file) in said and "JAX_PLATFORMS=cpu" in said


def test_there_is_no_warning_without_an_accelerator(warnings_on):
    assert not warnings_on("nvidia-caps", "vfio")


def test_there_is_no_warning_where_the_cpu_was_asked_for(warnings_on):
    jax.config.update("jax_platforms", "cpu")
    assert not warnings_on("nvidia0", "accel0")


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_hidden_gpus_give_no_warning(warnings_on, monkeypatch, hidden):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not warnings_on("nvidia0")


def test_the_warning_comes_once(warnings_on):
    assert len(warnings_on("nvidia0")) == len(warnings_on()) == 1
