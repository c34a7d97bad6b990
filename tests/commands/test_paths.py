"""Paths of every command, key and variable: ~ is the home directory, and URLs are refused."""

from pathlib import Path

import pytest

import pmjax
from pmjax import bench, config, evaluate, main, paths, reproduce, sample, schema
from pmjax.datasets import loader, tfds_builder
from pmjax.errors import UserError
from pmjax.evals.features import inception_weights
from pmjax.evals.features.statistics import cache_directory

DIGITS = str(Path(__file__).parents[2] / "configs" / "digits.py")
URLS = ["gs://bucket/run", "s3://b/x", "hdfs://host:9/x", "file:///tmp/x", "https://h/x", "GS://b/"]
PAIR = ["--samples=a.npy", "--reference=b.npy"]
FLAGS = [
    (main, ["--workdir"], ["--config=c.py"]),
    (evaluate, ["--workdir", "--samples", "--reference", "--floor", "--out", "--weights"], PAIR),
    (sample, ["--workdir", "--out"], ["--workdir=w", "--out=o.png"]),
    (reproduce, ["--workdir"], ["digits"]),
    (bench, ["--json"], []),
]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("url", [*URLS, Path("gs://bucket/run")])
def test_a_url_is_refused_with_what_to_do(url):
    with pytest.raises(UserError, match="is a URL.* gcsfuse"):
        paths.local(url)


def test_an_empty_path_is_not_the_current_directory():
    with pytest.raises(UserError, match="A path is empty"):
        paths.local("")


@pytest.mark.parametrize("name", ["run_12:30/x", "run:30", "a=b://c", "C:/x", ":/x", "gs:"])
def test_other_names_with_colons_are_paths(name):
    assert paths.local(name) == Path(name)


def test_tilde_is_the_home_directory_of_a_known_user(home):
    assert paths.local("~") == home and paths.local(Path("~/x")) == home / "x"
    assert paths.local("a/~/b") == Path("a/~/b")
    with pytest.raises(UserError, match="~nosuchuser/x: there is no such home directory"):
        paths.local("~nosuchuser/x")


@pytest.mark.parametrize(
    ("command", "flag", "others"),
    [(command, flag, others) for command, flags, others in FLAGS for flag in flags],
    ids=lambda value: value.__name__ if hasattr(value, "main") else "".join(value),
)
@pytest.mark.parametrize("joined", [True, False])
def test_every_path_of_a_command_is_taken_as_one(command, flag, others, joined, home, monkeypatch):
    words = [f"{flag}=gs://b/x"] if joined else [flag, "gs://b/x"]
    monkeypatch.setattr("sys.argv", ["command", *others, *words])
    with pytest.raises(UserError, match="gs://b/x is a URL"):
        command.main()
    assert not list(home.iterdir())


@pytest.mark.parametrize("variable", paths.VARIABLES)
def test_a_url_in_a_variable_is_refused_before_anything_starts(variable, home, monkeypatch):
    monkeypatch.setenv(variable, "gs://b/x")
    monkeypatch.setattr("sys.argv", ["main", f"--config={DIGITS}", "--workdir=w"])
    with pytest.raises(UserError, match="gs://b/x is a URL"):
        main.main()
    assert not list(home.iterdir())


def test_no_command_has_a_path_of_another_kind():
    for command, _, _ in FLAGS:
        assert "type=Path" not in Path(command.__file__).read_text()


@pytest.mark.parametrize("name", [name for name, key in schema.KEYS.items() if key.local])
def test_every_path_of_a_config_is_refused_as_a_url(name):
    with pytest.raises(UserError, match="gs://b/x is a URL"):
        config.load(DIGITS, {name: "gs://b/x"})


def test_python_callers_may_write_tilde(home):
    with pytest.raises(UserError, match=f"{home}/w is not a workdir"):
        pmjax.load("~/w")
    with pytest.raises(UserError, match="is a URL"):
        pmjax.load("gs://b/w")
    with pytest.raises(UserError, match=f"{home}/pictures"):
        loader.load("image_folder", "train", path="~/pictures", size=8, cache_dir="~/c")
    assert not (home / "~").exists()


def test_variables_that_name_paths_may_have_tilde_and_no_url(home, monkeypatch):
    places = {
        "PMJAX_CACHE": lambda: cache_directory("x").parent,
        "TFDS_DATA_DIR": tfds_builder.stock_dir,
        "PMJAX_INCEPTION_WEIGHTS": inception_weights.find,
    }
    (home / "file").touch()
    for name, read in places.items():
        monkeypatch.setenv(name, "~/file")
        assert read() == home / "file"
        monkeypatch.setenv(name, "s3://b/file")
        with pytest.raises(UserError, match="s3://b/file is a URL"):
            read()
