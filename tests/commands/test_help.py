"""--help: the flags, and every key of a config with its value and comment."""

import re

import pytest

from pmjax import cli, config, main, plugins, schema
from pmjax.errors import UserError


def printed_help(monkeypatch, capsys, *words):
    monkeypatch.setattr("sys.argv", ["pmjax.main", *words])
    with pytest.raises(SystemExit) as stopped:
        main.main()
    assert stopped.value.code == 0
    return capsys.readouterr().out


def test_help_has_the_flags_and_says_how_to_list_keys(monkeypatch, capsys):
    text = printed_help(monkeypatch, capsys, "--help")
    assert "--workdir" in text and "--config=FILE --help" in text


def test_abbreviated_flags_are_rejected(monkeypatch):
    monkeypatch.setattr("sys.argv", ["main", "--config=a.py", "--workdir=w", "--work=v"])
    with pytest.raises(UserError, match="Unknown argument '--work=v'. Did you mean '--workdir'"):
        main.main()


@pytest.fixture(scope="module")
def digits_help():
    return cli.describe("configs/digits.py:runlocal", {"eval.args.topology.neighbours": "7"})


def test_help_of_a_config_has_every_key_with_its_value(digits_help):
    values = config.flat(config.load("configs/digits.py:runlocal"))
    for name, value in values.items():
        shown = str(value).lower() if isinstance(value, bool) else str(value)
        shown = ",".join(value) if isinstance(value, list) else shown or "''"
        assert re.search(rf"^[* ] {re.escape(f'{name} = {shown}')}( |$)", digits_help, re.M), name
    assert "* eval.args.topology.neighbours = 7" in digits_help


def test_help_of_a_config_has_comments_and_ranges(digits_help):
    text = " ".join(digits_help.split())
    for key in schema.KEYS.values():
        assert key.comment in text
    assert re.search(r"latent_dim = 64 .* \[1 to 1,048,576\]", digits_help)
    assert re.search(r"parallel = jit .* \[jit, pmap\]", digits_help)
    assert "method_args.omega1 = 0.05 weight of" in text
    assert "prior_args.width = 128 of g's and D's hidden layers" in text


def test_help_of_a_config_lists_all_plugins_with_their_purpose(digits_help):
    for kind in ("methods", "priors", "nets", "datasets", "metrics", "extractors"):
        for name, summary in plugins.summaries(kind).items():
            assert summary and re.search(rf"^  {name}( |$)", digits_help, re.M), name
    assert re.search("^  fid +another name of fd_inception_2015$", digits_help, re.M)
    assert len(re.findall("^  prdc( |$)", digits_help, re.M)) == 1


def test_help_of_a_config_fits_in_100_columns(digits_help):
    assert max(map(len, digits_help.splitlines())) <= 100


def test_help_describes_the_config_with_its_overrides(monkeypatch, capsys):
    words = "--config=configs/digits.py", "-h", "--config.method=vae", "--config.steps", "7"
    text = printed_help(monkeypatch, capsys, *words)
    assert "method_args.beta = 1.0 " in text and "omega1 =" not in text
    assert "  steps = 7 " in text
