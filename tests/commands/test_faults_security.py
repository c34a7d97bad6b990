"""Files that attack: nothing of what is read is run, written elsewhere or shown as markup."""

import ast
import builtins
import io
import json
import os
import pickle
import subprocess
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest

import pmjax
from pmjax import config
from pmjax.datasets import celeba, cifar10, loader, records
from pmjax.errors import UserError
from pmjax.evals.features import inception_weights, torch_file
from pmjax.storage import metrics_file, workdir
from tests.small_run import ROOT

SOURCES = sorted(Path(pmjax.__file__).parent.rglob("*.py"))
DIGITS = str(ROOT / "configs" / "digits.py")


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def attacks(victim):
    """Returns {name: object} that would make a file `victim` when they are unpickled."""
    code = f"open({str(victim)!r}, 'w').close()"
    return {
        "system": Call(os.system, f"touch {victim}"),
        "exec": Call(builtins.exec, code),
        "eval": Call(builtins.eval, code),
        "open": Call(io.open, str(victim), "w"),
        "popen": Call(subprocess.Popen, ["touch", str(victim)]),
        "nested": {"fc": [Call(getattr, Call(__import__, "os"), "system")]},
        "objects": np.array([Call(os.system, f"touch {victim}")], dtype=object),
        "scalar": Call(np.load, str(victim)),
    }


def torch_zip(content):
    """Returns a file as `torch.save` makes it, around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/data/0", bytes(16))
    return file.getvalue()


READERS = {
    "flax": (bytes, "w.pickle", lambda file: inception_weights.read(file, verify=False)),
    "torch": (torch_zip, "w.pth", torch_file.load),
    "old torch": (bytes, "w.pth", torch_file.load),
    "cifar": (bytes, "batch", lambda file: cifar10.read_batch(file.read_bytes(), str(file))),
}


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("attack", sorted(attacks("x")))
def test_a_pickle_that_attacks_is_refused_and_not_run(tmp_path, attack, reader, protocol):
    victim = tmp_path / "victim"
    pack, name, read = READERS[reader]
    (tmp_path / name).write_bytes(pack(pickle.dumps(attacks(victim)[attack], protocol)))
    with pytest.raises(UserError, match=name):
        read(tmp_path / name)
    assert not victim.exists()


def test_these_attacks_would_work_on_pickle_itself(tmp_path):
    pickle.loads(pickle.dumps(attacks(tmp_path / "victim")["objects"]))
    assert (tmp_path / "victim").exists()


def everything_below(folder):
    """Returns the names of all that lies below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


SLIPS = ("../slip", "../../slip", "{}/absolute", "a/../../slip", "..\\slip")


def test_archives_write_nothing_wherever_their_names_lead(tmp_path):
    folder = tmp_path / "archives"
    folder.mkdir()
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz") as tar:
        for i, name in enumerate(SLIPS):
            member = tarfile.TarInfo(name.format(tmp_path))
            member.type = (tarfile.REGTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE)[i % 3]
            member.linkname = "/etc/passwd"
            tar.addfile(member)
        member = tarfile.TarInfo(f"{cifar10.FOLDER}/test_batch")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(member)
    with zipfile.ZipFile(folder / "celeba.zip", "w") as archive:
        for name in SLIPS:
            archive.writestr(name.format(tmp_path) + ".jpg", b"x")
    before = everything_below(tmp_path)
    with pytest.raises(UserError, match="lacks"):  # a link is no batch
        cifar10._unpack(folder / cifar10.ARCHIVE)
    members = celeba._members(folder / "celeba.zip")
    assert {r["image"] for r in records.ZipMembers(folder / "celeba.zip", [*members.values()])} == {
        b"x"
    }
    assert everything_below(tmp_path) == before


def test_the_config_of_a_workdir_is_data(tmp_path):
    stored = config.load(DIGITS).to_dict()
    code = f"__import__('os').system('touch {tmp_path}/victim')"
    for key in ("method", "prior", "nets", "profile", "parallel"):
        (tmp_path / "config.json").write_text(json.dumps(stored | {key: code}))
        with pytest.raises(UserError, match=r"config\.json"):
            config.read(tmp_path / "config.json")
    with pytest.raises(UserError):
        config.load(DIGITS, {"method": code})
    (tmp_path / "config.json").write_text(code)
    with pytest.raises(UserError, match="cannot be read"):
        config.read(tmp_path / "config.json")
    assert not (tmp_path / "victim").exists()


def test_no_source_calls_functions_that_run_or_unpack_files():
    """The pickles that may be read are those of the package's own processes, on a pipe."""
    forbidden = {"eval", "exec", "extractall", "extract", "unpack_archive", "system", "popen"}
    own = {"decode_pool.py", "decode_worker.py"}
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.keyword):
                shell = node.arg in ("shell", "allow_pickle")
                assert not (shell and getattr(node.value, "value", 1)), source
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            assert not (isinstance(node.func, ast.Name) and name in forbidden), (source, name)
            method = name.rpartition(".")
            assert method[2] not in forbidden - {"eval"}, (source, name)
            assert name not in ("yaml.load", "torch.load", "marshal.load", "shelve.open"), source
            assert source.name in own or name not in ("pickle.load", "pickle.loads"), source


class Answer(io.BytesIO):
    """What a download gets."""


def test_a_download_of_another_file_is_refused_and_deleted(tmp_path, monkeypatch):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path))
    monkeypatch.delenv(inception_weights.VARIABLE, raising=False)
    monkeypatch.setattr("urllib.request.urlopen", lambda *args, **kw: Answer(b"other"))
    with pytest.raises(UserError, match="sha256"):
        inception_weights.find()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_revision_is_that_of_the_checkout_or_none(tmp_path):
    assert metrics_file.revision(tmp_path) is None
    git = ["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "file").write_text("1")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    assert metrics_file.revision(tmp_path) == head.stdout.strip()
    (tmp_path / "file").write_text("2")
    assert metrics_file.revision(tmp_path) == head.stdout.strip() + "-dirty"


def test_the_revision_of_an_installed_copy_is_that_of_the_pip_install(tmp_path, monkeypatch):
    info = tmp_path / "pmjax-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Name: pmjax\nVersion: 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert metrics_file.revision(tmp_path) is None
    origin = {"url": "https://there", "vcs_info": {"vcs": "git", "commit_id": "8e2f"}}
    for found, revision in ((origin, "8e2f"), ({"url": "file:///w", "dir_info": {}}, None)):
        (info / "direct_url.json").write_text(json.dumps(found))
        assert metrics_file.revision(tmp_path) == revision


def test_metrics_state_their_provenance(small_run):
    made = json.loads((small_run / "metrics.json").read_text())
    settings = config.read(small_run / "config.json")
    data = {s: loader.load("digits", s).fingerprint for s in ("train", "test")}
    assert (made["seed"], made["devices"], made["data"]) == (0, ["cpu"], data)
    assert made["config"] == workdir.digest(settings)
    assert made["config"] != workdir.digest(config.load(DIGITS))
    assert made["revision"] == metrics_file.revision(ROOT)
    assert made["versions"].items() >= {
        name: metadata.version(name) for name in ("pmjax", "jax", "flax", "optax", "numpy")
    }.items()  # fmt: skip
