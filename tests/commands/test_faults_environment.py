"""No home, caches that cannot be written, odd names: a command goes on, or says what to set."""

import json
import os
import pwd
import re
import sys
import warnings
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from pmjax import cli
from pmjax.datasets import loader, tfds_builder
from pmjax.errors import UserError
from pmjax.evals import image_sets
from pmjax.evals.features import statistics
from pmjax.reporting import html
from pmjax.reproductions import jobs
from pmjax.storage import metrics_file, workdir


@pytest.fixture(autouse=True)
def no_caches(monkeypatch):
    """Sets no variable that names a cache."""
    for name in ("PMJAX_CACHE", "TFDS_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    with warnings.catch_warnings():
        yield
    jax.config.update("jax_compilation_cache_dir", before)


def no_home(tmp_path, monkeypatch):
    """A user id that the system does not know, as with docker run --user."""

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", unknown)


def home_is_a_file(tmp_path, monkeypatch):
    """HOME is not a directory."""
    (tmp_path / "home").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


def home_is_missing(tmp_path, monkeypatch):
    """HOME cannot be made, as for system users."""
    monkeypatch.setenv("HOME", "/proc/nonexistent")


def cache_is_a_file(tmp_path, monkeypatch):
    """PMJAX_CACHE is not a directory."""
    (tmp_path / "cache").touch()
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))


def cache_cannot_be_written(tmp_path, monkeypatch):
    """PMJAX_CACHE is a directory in which no file can be made, even by root."""
    monkeypatch.setenv("PMJAX_CACHE", "/proc/self/fdinfo")


@pytest.fixture(
    params=[no_home, home_is_a_file, home_is_missing, cache_is_a_file, cache_cannot_be_written]
)
def no_cache(request, tmp_path, monkeypatch):
    """A machine on which the cache cannot be written; the working directory is empty."""
    request.param(tmp_path, monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield
    assert not [*Path().iterdir()]  # such as a directory called ~


def test_programs_are_not_cached_where_nothing_can_be_written(no_cache, caplog):
    cli.cache_compilations()
    assert jax.config.jax_compilation_cache_dir is None
    (said,) = caplog.messages
    assert re.search(r"Compiled programs are not cached.*[^.]\. Set PMJAX_CACHE", said)


def test_data_need_a_cache_and_say_which_variable_names_it(no_cache):
    with pytest.raises(UserError, match="PMJAX_CACHE"):
        loader.load("swiss_roll", "train")


def test_statistics_are_computed_where_they_cannot_be_stored(no_cache, caplog):
    moments = np.zeros(2), np.eye(2), 3
    assert statistics.cached({}, "fingerprint", lambda: moments, 2) is moments
    assert "not cached" in caplog.text and "PMJAX_CACHE" in caplog.text


def test_data_sets_of_tfds_without_a_home_name_their_variable(tmp_path, monkeypatch):
    no_home(tmp_path, monkeypatch)
    with pytest.raises(UserError, match="Set TFDS_DATA_DIR"):
        tfds_builder.stock_dir()


def test_a_cache_of_another_user_is_one_message(tmp_path, monkeypatch):
    """Also where not even its existence may be seen, which root always may."""
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path))
    real = os.stat

    def stat(path, *args, **kwargs):
        if str(path).startswith(str(tmp_path / "swiss_roll")):
            raise PermissionError(13, "Permission denied", path)
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "stat", stat)
    (tmp_path / "swiss_roll").touch()
    with pytest.raises(UserError, match="PMJAX_CACHE"):
        loader.load("swiss_roll", "train")


@pytest.mark.parametrize("own", ["{}/own", "~/own", "gs://bucket/cache", "/proc/nowhere"])
def test_jax_s_own_cache_is_used_instead(own, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "other"))
    monkeypatch.chdir(tmp_path)
    own = own.format(tmp_path)
    jax.config.update("jax_compilation_cache_dir", own)  # as the variable does
    cli.cache_compilations()
    assert jax.config.jax_compilation_cache_dir == own.replace("~", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} <= {"own"}


def test_jax_s_own_cache_in_no_home_is_not_a_directory_called_tilde(tmp_path, monkeypatch, caplog):
    no_home(tmp_path, monkeypatch)
    jax.config.update("jax_compilation_cache_dir", "~/own")
    cli.cache_compilations()
    assert jax.config.jax_compilation_cache_dir is None
    assert "Set JAX_COMPILATION_CACHE_DIR" in caplog.text


def test_a_cache_that_can_be_written_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))
    cli.cache_compilations()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "jax")
    assert (tmp_path / "cache" / "jax").stat().st_mode & 0o777 == 0o700


ODD = os.fsdecode(b"a\xff\x1b[31m\nb")  # not UTF-8, and what a terminal would obey


def test_a_workdir_that_is_not_utf_8_is_refused_before_training(tmp_path):
    with pytest.raises(UserError, match="not UTF-8. Use another --workdir"):
        workdir.claim(ConfigDict(), tmp_path / ODD)
    with pytest.raises(UserError, match="not UTF-8. Use another --workdir"):
        jobs.locked(tmp_path / ODD).__enter__()
    assert not [*tmp_path.iterdir()]


def test_a_report_and_metrics_that_name_odd_files_can_be_read(tmp_path):
    html.write_report(tmp_path, title=ODD, config={"data": {"path": ODD}}, tables=[], figures=[])
    assert r"a\udcff" in (tmp_path / "report.html").read_text(encoding="utf-8")
    metrics_file.record(
        tmp_path / "metrics.json", {"m": 1.0}, {"sets": {"samples": ODD}}, (), metric_of=str
    )
    stored = json.loads((tmp_path / "metrics.json").read_text(encoding="ascii"))
    assert stored["history"][0]["sets"]["samples"] == ODD


def test_odd_names_are_escaped_in_the_message_of_a_command(tmp_path, monkeypatch, capsys):
    (tmp_path / ODD).mkdir()
    (tmp_path / ODD / f"{ODD}.png").touch()
    monkeypatch.setattr(sys, "stdout", sys.stdout)  # which a command replaces
    monkeypatch.setattr(sys, "stderr", sys.stderr)
    with pytest.raises(SystemExit) as end:
        cli.run(lambda: image_sets.load(tmp_path / ODD))
    told = capsys.readouterr().err
    assert end.value.code == 2 and "cannot be used" in told
    assert r"a\udcff\x1b[31m\nb.png" in told and "\x1b" not in told
