"""Damage to any file of a workdir: noticed, named, and never run."""

import hashlib
import json
import os
import pickle
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pmjax
from pmjax import builders, config, schema
from pmjax.errors import UserError
from pmjax.priors import base as priors
from pmjax.reporting import history
from pmjax.storage import checkpoint, metrics_file, workdir
from pmjax.training import snapshots
from pmjax.training.optimizers import stage1_optimizer
from pmjax.training.step import init_state


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def delete(path):
    path.unlink()


def lock_away(path):
    """Makes it unreadable, for root too."""
    path.unlink()
    path.mkdir()


def at(state, step):
    params = jax.tree.map(lambda p: p + step, state.params)
    return state.replace(step=jnp.int32(step), params=params)


def plain(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


@pytest.fixture(scope="module")
def state():
    spec = priors.make("latent_gan", {"width": 4}).spec(2)
    return init_state(spec, lambda updates_per_step: optax.adam(1e-3), jax.random.key(0))


@pytest.fixture(scope="module")
def saved(state, tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("saved") / "stage"
    store = checkpoint.Checkpoints(directory)
    for step in (1, 2):
        store.save(at(state, step), {"config": "abc"})
    store.close()
    return directory


def files_of(folder):
    found = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert len(found) > 8 and any(p.name == checkpoint.FILES for p in found)
    return found


def restore(directory, state, caplog):
    """Returns the restored state with its info, and the log meanwhile."""
    caplog.clear()
    store = checkpoint.Checkpoints(directory)
    try:
        return store.restore(state), caplog.text
    finally:
        store.close()


@pytest.mark.parametrize("damage", [cut, flip, delete, lock_away])
def test_damage_to_any_file_of_the_newest_is_named_and_the_one_before_used(
    damage, saved, state, tmp_path, caplog
):
    for name in files_of(saved / "2"):
        directory = tmp_path / "copy"
        shutil.copytree(saved, directory)
        damage(directory / "2" / name)
        (found, info), said = restore(directory, state, caplog)
        if str(name) in checkpoint._LATE:  # nothing of the state is in it, nor is it needed
            assert int(found.step) == 2, (name, said)
        else:
            assert f"{directory / '2'} is damaged" in said, name
            named = checkpoint.FILES if name.name == checkpoint.FILES else str(name)
            assert named in said or name.name == checkpoint.FILES, said
            assert int(found.step) == 1, name
        assert info["config"] == "abc"
        chex.assert_trees_all_equal(plain(found), plain(at(state, int(found.step))))
        shutil.rmtree(directory)


def test_a_checkpoint_without_its_state_directory_is_skipped(saved, state, tmp_path, caplog):
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    shutil.rmtree(directory / "2" / "state")
    (found, _), said = restore(directory, state, caplog)
    assert int(found.step) == 1 and "state/" in said


def test_when_all_are_damaged_one_message_says_where(saved, state, tmp_path, caplog):
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    for step in ("1", "2"):
        flip(directory / step / "state" / "_METADATA")
    with pytest.raises(UserError, match=r"All checkpoints in .*copy are damaged") as error:
        restore(directory, state, caplog)
    assert "\n" not in str(error.value) and "Delete that directory" in str(error.value)
    assert (directory / "2").is_dir()  # nothing is deleted that could be repaired


def test_sha256sum_accepts_the_list_of_files(saved):
    assert os.system(f"cd {saved / '2'} && sha256sum --check --quiet {checkpoint.FILES}") == 0


def test_a_checkpoint_of_an_earlier_version_has_no_list_and_is_read(saved, state, tmp_path, caplog):
    directory = tmp_path / "copy"
    shutil.copytree(saved, directory)
    (directory / "2" / checkpoint.FILES).unlink()
    path = directory / "2" / "info" / "metadata"
    info = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in info.items() if k != "listed"}))
    (found, _), said = restore(directory, state, caplog)
    assert int(found.step) == 2 and not said


def of_earlier_version(binding, how):
    """What a checkpoint has in 'config' whose version did not know the newest keys."""
    old = {name: value for name, value in binding.items() if name not in schema.ADDED}
    assert len(old) < len(binding)
    if how == "keys":
        return json.loads(json.dumps(old))
    return hashlib.sha256(repr(sorted(old.items())).encode()).hexdigest()[:16]


@pytest.mark.parametrize("how", ["keys", "hash"])
def test_a_checkpoint_of_an_earlier_version_of_the_config_is_accepted(how):
    settings = config.load("configs/digits.py:runlocal")
    info = {"config": workdir.training_config(settings), "data": "a"}
    found = {"config": of_earlier_version(info["config"], how), "data": "a"}
    workdir.require_same(found, info, "stage1")


@pytest.mark.parametrize(
    "how, message",
    [("keys", "config.precision: 'float32' there, 'bfloat16' now"), ("hash", "the config's hash")],
)
def test_a_checkpoint_of_another_config_is_rejected_with_the_differing_keys(how, message):
    settings = config.load("configs/digits.py:runlocal", {"precision": "bfloat16"})
    info = {"config": workdir.training_config(settings), "data": "a"}
    found = {"config": of_earlier_version(info["config"], how), "data": "a"}
    with pytest.raises(UserError, match=message) as error:
        workdir.require_same(found, info, "stage1")
    assert "checkpoint of stage1 belongs to another config" in str(error.value)
    assert "latent_dim" not in str(error.value)


@pytest.mark.parametrize("damage", [cut, flip, delete, lock_away])
def test_damaged_embeddings_are_named(damage, tmp_path):
    z = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    workdir.write_embeddings(tmp_path, z)
    np.testing.assert_array_equal(workdir.read_embeddings(tmp_path), z)
    np.testing.assert_array_equal(np.load(tmp_path / workdir.EMBEDDINGS), z)
    damage(tmp_path / workdir.EMBEDDINGS)
    with pytest.raises(UserError, match=r"embeddings.npy cannot be read .* Run the training"):
        workdir.read_embeddings(tmp_path)


def test_embeddings_of_an_earlier_version_are_read(tmp_path):
    np.save(tmp_path / workdir.EMBEDDINGS, np.eye(3))
    np.testing.assert_array_equal(workdir.read_embeddings(tmp_path), np.eye(3))


# Read past what is damaged, or made anew beside it.
MENDED = ("history.jsonl", "metrics.json")


class Trap:
    """Pickled, it runs a command wherever somebody reads it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture
def traps(tmp_path):
    """Pickles that leave a file where they are run: bare, and inside NumPy's format."""
    mark = tmp_path / "ran"
    np.save(tmp_path / "trap.npy", np.array([Trap(mark)], dtype=object), allow_pickle=True)
    yield pickle.dumps(Trap(mark)), (tmp_path / "trap.npy").read_bytes()
    assert not mark.exists()
    np.load(tmp_path / "trap.npy", allow_pickle=True)
    assert mark.exists()  # they do run, if they are let


@pytest.fixture
def run(tmp_path):
    """A workdir as a run leaves it, but for the training."""
    small = {"nets": "mlp", "nets_args.width": "8", "latent_dim": "2", "prior": "gaussian"}
    settings = config.load("configs/digits.py:runlocal", small)
    found, shape = tmp_path / "run", (28, 28, 1)
    workdir.claim(settings, found)
    spec, optimizer = builders.stage1_spec(settings, shape), stage1_optimizer(settings)
    state = init_state(spec, optimizer, jax.random.key(0))
    checkpoint.write_arrays(found / workdir.AUTOENCODER, snapshots.autoencoder_arrays(state, shape))
    z = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    workdir.write_embeddings(found, z)
    arrays = builders.prior(settings).fit(z, seed=0)
    checkpoint.write_arrays(workdir.prior_path(found, "gaussian"), arrays)
    (found / "history.jsonl").write_text('{"stage": "stage1", "step": 1, "values": {}}\n')
    metrics_file.record(found / "metrics.json", {}, {}, metric_of=str)
    return found


def read_all(run):
    """Reads all files, as the commands do; returns how many are damaged."""
    damaged = 0
    for read in (
        lambda: pmjax.load(run).fitted_prior("gaussian"),
        lambda: workdir.read_embeddings(run),
        lambda: history.read(run),
        lambda: metrics_file.record(run / "metrics.json", {}, {}, metric_of=str),
    ):
        try:
            read()
        except UserError:
            damaged += 1
    return damaged


def test_a_pickle_in_place_of_any_file_of_a_workdir_is_never_run(run, traps, tmp_path):
    assert read_all(run) == 0
    names = sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file())
    assert len(names) == 6
    for name in names:
        for trap in traps:
            digest = hashlib.sha256(trap).digest()
            for content in (trap, digest + trap, trap + digest):  # as those who know would write it
                copy = tmp_path / "copy"
                shutil.copytree(run, copy)
                (copy / name).write_bytes(content)
                assert read_all(copy) == (str(name) not in MENDED)
                shutil.rmtree(copy)


def test_a_pickle_in_place_of_any_file_of_a_checkpoint_is_never_run(
    saved, state, traps, tmp_path, caplog
):
    for name in files_of(saved / "2"):
        directory = tmp_path / "copy"
        shutil.copytree(saved, directory)
        (directory / "2" / checkpoint.FILES).unlink()  # with it none would be looked into
        (directory / "2" / name).write_bytes(traps[0])
        restore(directory, state, caplog)
        shutil.rmtree(directory)
