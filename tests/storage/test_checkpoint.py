"""Checkpoints: what is read is what was written, and damage is noticed."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pmjax.errors import UserError
from pmjax.priors import base as priors
from pmjax.storage import checkpoint
from pmjax.training.step import init_state


@pytest.fixture
def state():
    spec = priors.make("latent_gan", {"width": 8}).spec(3)
    return init_state(spec, lambda updates_per_step: optax.adam(1e-3), jax.random.key(0))


def at(state, step):
    return state.replace(
        step=jnp.int32(step), params=jax.tree.map(lambda p: p + step, state.params)
    )


def plain(state):
    return jax.device_get(state.replace(key=jax.random.key_data(state.key)))


def save_all(directory, state, steps, keep=3):
    store = checkpoint.Checkpoints(directory, keep=keep)
    for step in steps:
        store.save(at(state, step), {"config": "abc"})
    store.close()


def damage(directory, how):
    largest = max(
        (p for p in directory.rglob("*") if p.is_file()), key=lambda path: path.stat().st_size
    )
    if how == "deleted":
        largest.unlink()
    elif how == "cut":
        largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    else:
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 0xFF
        largest.write_bytes(content)


def test_the_newest_state_comes_back_bit_for_bit(tmp_path, state):
    save_all(tmp_path, state, [1, 2, 3, 4])
    store = checkpoint.Checkpoints(tmp_path)
    found, info = store.restore(state)
    chex.assert_trees_all_equal(plain(found), plain(at(state, 4)))
    assert info["config"] == "abc"
    store.close()


def test_only_the_newest_checkpoints_are_kept(tmp_path, state):
    save_all(tmp_path, state, [1, 2, 3, 4], keep=2)
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == [3, 4]


@pytest.mark.parametrize("how", ["deleted", "cut", "flipped"])
def test_the_checkpoint_before_a_damaged_one_is_used_with_a_warning(tmp_path, state, how, caplog):
    save_all(tmp_path, state, [1, 2])
    damage(tmp_path / "2", how)
    store = checkpoint.Checkpoints(tmp_path)
    found, _ = store.restore(state)
    assert int(found.step) == 1
    first, second = caplog.messages
    assert f"{tmp_path / '2'} is damaged" in first
    assert "step 1" in second
    store.save(at(state, 2), {})
    store.close()
    assert (tmp_path / "2").is_dir()


def test_all_checkpoints_damaged_is_a_user_error(tmp_path, state):
    save_all(tmp_path, state, [1, 2])
    for step in ("1", "2"):
        damage(tmp_path / step, "cut")
    store = checkpoint.Checkpoints(tmp_path)
    with pytest.raises(UserError, match="All checkpoints in .* are damaged"):
        store.restore(state)
    store.close()


def test_without_checkpoints_there_is_nothing_to_restore(tmp_path, state):
    store = checkpoint.Checkpoints(tmp_path / "none")
    assert store.restore(state) is None
    store.close()


def test_arrays_come_back_and_damage_is_noticed(tmp_path):
    tree = {"a": {"b": np.arange(6, dtype=np.float32).reshape(2, 3)}, "c": np.int64(4)}
    path = tmp_path / "sub" / "arrays.msgpack"
    checkpoint.write_arrays(path, tree)
    chex.assert_trees_all_equal(checkpoint.read_arrays(path), tree)
    damage(path.parent, "flipped")
    with pytest.raises(UserError, match="is damaged"):
        checkpoint.read_arrays(path)
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.read_arrays(tmp_path / "missing")
