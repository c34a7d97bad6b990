"""Configs: every file loads, and mistakes are named with what would be right."""

import functools
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

import pmjax
from pmjax import config, schema
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError
from pmjax.reporting.run_log import RunLog
from pmjax.storage import workdir
from pmjax.training import stages
from pmjax.training.optimizers import make_optimizer

CONFIGS = Path(__file__).parents[2] / "configs"
FILES = sorted(path for path in CONFIGS.glob("*.py") if path.stem != "default")
README = CONFIGS / "README.md"
DIGITS = str(CONFIGS / "digits.py")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("variant", ["", ":runlocal", ":paper", ":author", ":author,runlocal"])
def test_every_config_loads_with_every_variant(path, variant):
    loaded = config.load(f"{path}{variant}")
    assert loaded.schedule == ("joint" if "author" in variant else "two_stage")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_config_states_its_command(path):
    assert f"python -m pmjax.main --config=configs/{path.name}" in path.read_text()


def test_presets_are_the_papers_and_the_authors():
    paper, author = config.load(f"{DIGITS}:paper"), config.load(f"{DIGITS}:author")
    assert (paper.schedule, paper.method_args.reconstruction) == ("two_stage", "squared")
    assert paper.prior_args.base_prior == "gaussian"
    assert (author.schedule, author.method_args.reconstruction) == ("joint", "absolute")
    assert author.prior_args.base_prior == "sphere"
    repeats = (
        author.method_args.critic_repeats,
        author.method_args.autoencoder_repeats,
        author.prior_args.critic_repeats,
        author.prior_args.generator_repeats,
    )
    assert repeats == (2, 1, 5, 1)


def test_overrides_take_the_type_of_what_they_replace():
    loaded = config.load(
        DIGITS,
        {
            "seed": "3",
            "optimizer.learning_rate": "1",
            "data.skip_broken": "true",
            "eval.baselines": "gmm",
            "method_args.omega1": "0.25",
        },
    )
    assert loaded.seed == 3
    assert loaded.optimizer.learning_rate == 1.0
    assert loaded.data.skip_broken is True
    assert loaded.eval.baselines == ("gmm",)
    assert loaded.method_args.omega1 == 0.25


def test_arguments_of_another_prior_are_not_taken_over():
    loaded = config.load(f"{DIGITS}:author", {"schedule": "two_stage", "prior": "gmm"})
    assert loaded.prior_args.components == 10
    assert "base_prior" not in loaded.prior_args


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"lern_rate": "1"}, "Unknown config key 'config.lern_rate'"),
        ({"optimizer.learningrate": "1"}, "Did you mean 'config.optimizer.learning_rate'?"),
        ({"method": "pn"}, "Unknown method 'pn'. Did you mean 'pm'?"),
        ({"prior": "gaussion"}, "Did you mean 'gaussian'?"),
        ({"data.name": "digit"}, "Did you mean 'digits'?"),
        ({"method_args.omega3": "1"}, "Did you mean 'omega"),
        ({"method_args.omega1": "much"}, "must be a number"),
        ({"steps": "many"}, "config.steps='many' must be an integer"),
        ({"steps": "1.5"}, "must be an integer"),
        ({"steps": "0"}, "must be at least 1"),
        ({"parallel": "pmab"}, "Did you mean 'pmap'?"),
        ({"schedule": "jointly"}, "Did you mean 'joint'?"),
        ({"eval.metrics": "recon"}, "Did you mean 'reconstruction'?"),
        ({"optimizer.schedule": "linaer"}, "Did you mean 'linear'?"),
        ({"method_args.reconstruction": "l2"}, "Valid: absolute, squared"),
        ({"optimizer": "adam"}, "is a group"),
        ({"optimizers.b1": "0"}, "Did you mean 'config.optimizer"),
        ({"seed.x": "0"}, "config.seed is a value"),
        ({"eval.args.kit.subsets": "3"}, "Did you mean 'kid'?"),
        ({"eval.args.kid.subset": "3"}, "Did you mean 'subsets'?"),
        ({"eval.args.kid.subsets": "x"}, "config.eval.args.kid.subsets='x' must be an integer"),
        ({"eval.args.kid": "3"}, "--config.eval.args.METRIC.NAME=VALUE"),
        ({"eval.args": "3"}, "--config.eval.args.METRIC.NAME"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_named_with_what_would_be_right(overrides, message):
    with pytest.raises(UserError) as error:
        config.load(DIGITS, overrides)
    assert message in str(error.value)


def test_a_batch_of_one_is_refused_where_the_latent_batch_norm_trains():
    one = {"data.batch_size": "1", "optimizer.accumulate": "64"}
    for method in ({"method": "pm"}, {"method": "ae", "method_args.batch_norm": "true"}):
        with pytest.raises(
            UserError, match="config.data.batch_size=1 must be at least 2.*BatchNorm"
        ):
            config.load("configs/digits.py", one | method)
    for method in ({"method_args.batch_norm": "false"}, {"method": "ae"}, {"method": "vae"}):
        assert config.load("configs/digits.py", one | method).data.batch_size == 1


def test_unknown_variant_and_file_are_named():
    with pytest.raises(UserError, match="unknown variant 'fast'; valid: author, paper, runlocal"):
        config.load(f"{DIGITS}:fast")
    with pytest.raises(UserError, match="Did you mean '.*digits.py'"):
        config.load(str(CONFIGS / "digit.py"))


def test_a_config_is_the_same_after_writing_and_reading(tmp_path):
    loaded = config.load(f"{DIGITS}:author", {"eval.args.kid.subset_size": "500"})
    assert loaded.eval.args.kid.subset_size == 500
    config.save(loaded, tmp_path / "config.json")
    assert config.read(tmp_path / "config.json").to_dict() == loaded.to_dict()


def test_a_config_has_the_keys_of_the_schema():
    names = config.flat(config.load(DIGITS))
    assert {name for name in names if "_args." not in name} == {*schema.KEYS}


def test_defaults_and_what_earlier_versions_did_are_valid():
    for name, key in schema.KEYS.items():
        assert key.check(name, key.default) == key.default
        if key.since:
            assert key.check(name, key.since[1]) == key.since[1]


def test_what_a_local_path_holds_does_not_change_what_is_trained():
    assert all(key.free for key in schema.KEYS.values() if key.local)


def stored(path, change):
    values = config.load(DIGITS).to_dict()
    change(values)
    path.write_text(json.dumps(values))
    return path


def test_a_stored_config_of_an_earlier_version_is_completed(tmp_path):
    values = config.flat(config.load(DIGITS))
    added = [name for name in schema.ADDED if name in values]  # others are of other plugins

    def drop(values):
        for name in added:
            *parents, last = name.split(".")
            part = values
            for parent in parents:
                part = part[parent]
            del part[last]
        values["prior_args"] = {"base_prior": "gaussian", "residual": False}  # no longer exists
        del values["method_args"], values["eval"]["args"]

    read = config.read(stored(tmp_path / "config.json", drop))
    found = config.flat(read)
    before = config.flat(schema.ADDED)
    assert {name: found[name] for name in added} == {name: before[name] for name in added}
    assert read.prior_args.base_prior == "gaussian" and "residual" not in read.prior_args
    assert read.method_args == config.load(DIGITS).method_args
    assert not read.eval.args


def test_a_stored_config_gets_arguments_of_nets_as_its_version_had_them(tmp_path):
    values = config.load("configs/cifar10.py").to_dict()
    assert values["nets_args"].pop("relu_shortcut") is True
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    assert config.read(path).nets_args.relu_shortcut is False


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.update(new=1) or v["eval"].update(faster=True),
         r"unknown keys \(eval.faster, new\)"),
        (lambda v: v.pop("steps"), r"lacks keys \(steps\)"),
        (lambda v: v.update(data=3), r"unknown keys \(data\) and it lacks keys \(data.batch_size"),
        (lambda v: v["prior_args"].update(depth=1),
         "config.json: Prior 'latent_gan' has no argument"),
        (lambda v: v["prior_args"].update(residual=True),
         "config.json: Prior 'latent_gan' has no argument"),
        (lambda v: v.update(method_args=3), "'method_args' is not a group"),
    ],
)  # fmt: skip
def test_a_stored_config_of_another_version_is_refused_in_one_message(tmp_path, change, message):
    path = stored(tmp_path / "config.json", lambda v: (
        v["prior_args"].update(base_prior="gaussian"), change(v)
    ))  # fmt: skip
    with pytest.raises(UserError, match=message):
        config.read(path)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"eval.best": "recon/psnr"}, "set config.eval.every"),
        ({"eval.best": "latent/var_min", "eval.every": "5"}, "Neither a higher nor"),
        ({"eval.best": "fd_efficientnet_lite0/recon", "eval.every": "5"},
         "name it in config.eval.during"),
        ({"eval.best": "fd_efficientnet_lite0/floor", "eval.every": "5"}, "Neither a higher nor"),
        ({"eval.during": "recon"}, "Did you mean 'reconstruction'"),
        ({"eval.every": "-1"}, "must be at least 0"),
    ],
)  # fmt: skip
def test_evaluations_during_training_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(UserError, match=message):
        config.load(DIGITS, overrides)


def test_a_workdir_of_another_config_is_refused_with_the_differing_keys(tmp_path):
    workdir.claim(config.load(DIGITS), tmp_path)
    free = {"eval.num_samples": "10", "log_every": "7", "eval.args.kid.subsets": "3"}
    workdir.claim(config.load(DIGITS, free), tmp_path)
    with pytest.raises(UserError) as error:
        workdir.claim(config.load(DIGITS, {"seed": "1", "method_args.gamma": "0.5"}), tmp_path)
    assert "config.seed: 0 there, 1 now" in str(error.value)
    assert "config.method_args.gamma: 0.2 there, 0.5 now" in str(error.value)


def test_a_workdir_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        workdir.claim(config.load(DIGITS), tmp_path / "file")


def test_the_best_model_of_a_run_is_not_trained(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "best.json").write_text("{}")
    with pytest.raises(UserError, match=f"snapshot of the run in {tmp_path},"):
        workdir.claim(config.load(DIGITS), tmp_path / "best")


def test_a_missing_config_file_is_reported_with_the_places_searched(tmp_path):
    with pytest.raises(UserError, match="Did you mean 'configs/digits.py'"):
        config.load("configs/digit.py")
    with pytest.raises(UserError, match=f"nor any other in {tmp_path}"):
        config.load(str(tmp_path / "digits.py"))


def own_config(tmp_path, change):
    """Returns the path of a config file that does not use `default.py`."""
    values = config.load(DIGITS).to_dict()
    change(values)
    path = tmp_path / "own.py"
    path.write_text(
        f"from ml_collections import ConfigDict\ndef get_config(variant):\n"
        f"    return ConfigDict({values!r})\n"
    )
    return str(path)


def test_a_config_file_of_an_earlier_version_is_completed(tmp_path):
    path = own_config(tmp_path, lambda values: values.pop("skip_nonfinite"))
    assert config.load(path) == config.load(DIGITS)


def test_a_config_file_with_other_keys_is_rejected(tmp_path):
    message = r"own.py: the config it returns has unknown keys \(new\)"
    with pytest.raises(UserError, match=message):
        config.load(own_config(tmp_path, lambda values: values.update(new=1)))


FROM_DEFAULT = "import default\ndef get_config(v):\n    return default.get_config(v, {'seed': 7})\n"
WORKING = {
    "elsewhere.py": FROM_DEFAULT,
    "no_ending": FROM_DEFAULT,
    "wrong.ending": FROM_DEFAULT,
    "a:b.py": FROM_DEFAULT,
    "lazy.py": FROM_DEFAULT.replace("import default\n", "").replace("    ", "    import default;"),
    "no_argument.py": "def get_config():\n    return {'seed': 7}\n",
    "mapping.py": "def get_config(v):\n    return {'seed': 7, 'data': {'name': 'digits'}}\n",
    "partial.py": "from ml_collections import ConfigDict\n"
    "def get_config(v=''):\n    return ConfigDict({'seed': 7})\n",
    "classes.py": "import dataclasses, default\n"
    "@dataclasses.dataclass\nclass A:\n    x: 'int' = 7\n"
    "def get_config(v):\n    return default.get_config(v, {'seed': A().x})\n",
    "file.py": "import os\n"
    "def get_config():\n    return {'seed': 7 if os.path.isabs(__file__) else 0}\n",
}


@functools.cache
def defaults_with_seed_7():
    return config.load(str(CONFIGS / "default.py"), {"seed": "7"})


@pytest.mark.parametrize("name", WORKING)
def test_a_config_file_anywhere_has_the_defaults_of_what_it_leaves_out(name, tmp_path):
    path = tmp_path / "run_12:30" / name
    path.parent.mkdir()
    path.write_text(WORKING[name])
    assert config.load(str(path)) == defaults_with_seed_7() == config.load(f"{path}:")
    if "default" in WORKING[name]:
        assert config.load(f"{path}:author").schedule == "joint"


def test_config_files_that_differ_in_their_ending_only_are_not_mixed_up(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for seed in (3, 4):
        path = tmp_path / f"own.{seed}"
        path.write_text(f"def get_config():\n    return {{'seed': {seed}}}\n")
        os.utime(path, (1e9, 1e9))
        assert config.load(str(path)).seed == seed


def test_a_config_of_a_workdir_is_one_for_another(tmp_path):
    loaded = config.load(DIGITS, {"seed": "3"})
    config.save(loaded, tmp_path / "config.json")
    assert config.load(str(tmp_path / "config.json")) == loaded
    with pytest.raises(UserError, match="config.json has no variants, such as 'author'"):
        config.load(f"{tmp_path / 'config.json'}:author")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nx = y\n", r"own.py, line 2: NameError: name 'y'"),
        ("def get_config(v):\n    return x\n", r"own.py, line 2: NameError"),
        (
            "def get_config(v):\n    pass\n",
            r"own.py: its get_config returns None, not a ConfigDict",
        ),
        ("x = 1\n", r"own.py: it defines no function get_config\(variant\)"),
        ("get_config = 3\n", "it defines no function"),
        ("def get_config(a, b):\n    pass\n", "own.py: .* missing 1 required"),
        ("import sys\nsys.exit(3)\n", r"own.py, line 2: SystemExit: 3"),
        ("import nosuch\n", r"own.py, line 1: ModuleNotFoundError: No module named 'nosuch'"),
        ("import beside\n", r"own.py, line 1: KeyError: 'x' \(.*beside.py, line 2\)"),
        ("import broken\n", r"broken.py cannot be read, line 2"),
        ("\0", "own.py"),
        ("def get_config(v):\n    return {1: 2}\n", r"unknown keys \(1\)"),
        (
            "def get_config(v):\n    return {'seed': 'x'}\n",
            "own.py: config.seed='x' must be an integer",
        ),
        (
            "def get_config(v):\n    return {'data': {'path': None}}\n",
            "own.py: .*path=None must be a text",
        ),
        ("def get_config(v):\n    raise KeyError('x ' * 999)\n", "own.py, line 2: .{,520}$"),
        (FROM_DEFAULT.replace("seed", "sed"), r"own.py, line 3: Unknown config key 'config.sed'"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_message_with_its_line(text, message, tmp_path):
    (tmp_path / "beside.py").write_text("d = {}\nd['x']\n")
    (tmp_path / "broken.py").write_text("\n= 1\n")
    (tmp_path / "own.py").write_text(text)
    with pytest.raises(UserError, match=message) as error:
        config.load(str(tmp_path / "own.py"))
    assert len(str(error.value).splitlines()) == 1


def test_a_config_file_knows_its_place_wherever_the_command_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text("def get_config():\n    return {'data': {'path': __file__}}\n")
    assert config.load("own.py").data.path == str(tmp_path / "own.py")
    Path("own.py").write_text("\n1 / 0\n")
    with pytest.raises(UserError, match="^own.py, line 2: ZeroDivisionError"):
        config.load("own.py")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("configs", "configs is a directory. Give one of its files: .*digits.py"),
        ("configs/digits", "Did you mean 'configs/digits.py'"),
        ("a:b/c.py:author", "no config file a:b/c.py,"),
        ("x" * 300, "config file"),
        ("", "A path is empty"),
        ("gs://bucket/c.py", "is a URL"),
        ("~/c.py", "no config file /nowhere/c.py"),
        ("/dev/null", "no config file /dev/null"),
    ],
)
def test_what_is_no_config_file_is_said_in_one_message(reference, message, monkeypatch):
    monkeypatch.setenv("HOME", "/nowhere")
    with pytest.raises(UserError, match=message):
        config.load(reference)


def test_config_files_see_their_own_neighbors_and_leave_no_module_behind(tmp_path, monkeypatch):
    users = ModuleType("default")
    monkeypatch.setitem(sys.modules, "default", users)
    before, path = {*sys.modules}, [*sys.path]
    for seed in (3, 4):
        folder = tmp_path / str(seed)
        folder.mkdir()
        (folder / "package").mkdir()
        (folder / "package" / "seeds.py").write_text(f"seed = {seed}\n")
        (folder / "default.py").write_text(
            "import shared\nfrom package import seeds\nconfig = {'seed': seeds.seed}\n"
        )
        (folder / "shared.py").touch()
        (folder / "own.py").write_text(
            "import default\ndef get_config():\n    return default.config\n"
        )
        assert config.load(str(folder / "own.py")).seed == seed
    assert sys.modules["default"] is users and sys.path == path
    left = {*sys.modules} - before
    assert not {"shared", "own", "own_config", "package", "package.seeds"} & left


ODD_TEXTS = [
    "2024-01-01", "007", "1e3", "0x10", "1_000", "true", "None", "1.10", "1,2", "[1]", "['a']",
    "'quoted'", '"quoted"', "()", "nan",
]  # fmt: skip
TEXT_KEYS = [
    name
    for name, key in schema.KEYS.items()
    if key.default == "" and not (key.plugin or key.choices or key.form)
]


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_a_text_is_taken_as_typed(text):
    for name in TEXT_KEYS:
        assert schema.KEYS[name].check(name, schema.Text(text)) == text
    loaded = config.load(DIGITS, {"data.path": text, "data.cache_dir": text})
    assert (loaded.data.path, loaded.data.cache_dir) == (text, text)
    with pytest.raises(UserError) as error:  # an argument of a plugin
        config.load(DIGITS, {"method_args.reconstruction": text})
    assert f"'{text}'" in str(error.value)
    given = {"eval.args.memorization.extractor": text}  # an argument of a metric: text or None
    if text != "None":
        with pytest.raises(UserError, match=re.escape(f"'{text}'")):
            config.load(DIGITS, given)


def test_words_are_taken_as_typed_and_may_be_a_list():
    words = lambda text: schema.as_type("x", schema.Text(text), ("a", "b"))  # noqa: E731
    assert words("1e3, 0x10,") == ("1e3", "0x10")
    assert words("2024-01-01") == ("2024-01-01",)
    assert words("['a', 'b']") == words("('a', 'b')") == words("a,b") == ("a", "b")
    assert words("") == ()
    assert schema.as_type("x", schema.Text("0.5,1e3"), (0.1, 0.2)) == (0.5, 1000.0)
    loaded = config.load(DIGITS, {"eval.args.memorization.control": "None"})
    assert loaded.eval.args.memorization.control is None


def test_every_schedule_of_the_schema_is_one_of_the_optimizer():
    for schedule in schema.KEYS["optimizer.schedule"].choices:
        make_optimizer(steps=1, schedule=schedule)
    with pytest.raises(UserError) as error:
        make_optimizer(steps=1, schedule="")
    valid = str(error.value).rpartition("Valid: ")[2].rstrip(".").split(", ")
    assert sorted(schema.KEYS["optimizer.schedule"].choices) == valid


def test_readme_example(tmp_path):
    block = re.search(r"```python\n# file: (\w+\.py)\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / block[1]).write_text(block[2])
    shutil.copy(CONFIGS / "default.py", tmp_path)
    loaded = config.load(f"{tmp_path / block[1]}:two_steps")
    workdir.claim(loaded, tmp_path / "run")
    report = RunLog(tmp_path / "run")
    stages.fit(loaded, tmp_path / "run", report, ProcessGroup())
    report.close()
    assert pmjax.load(tmp_path / "run").sample(3, seed=0).shape == (3, 28, 28, 1)


def test_readme_has_every_file():
    for path in CONFIGS.glob("*.py"):
        assert f"`{path.name}`" in README.read_text()
