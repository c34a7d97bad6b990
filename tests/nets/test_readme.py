"""The example in the nets' README is a family that the paper's method trains."""

from functools import partial

import jax
import numpy as np
import optax

from pmjax import plugins
from pmjax.methods.base import NetBuilder
from pmjax.training.step import init_state, train_step
from tests.readme_example import ROOT, import_example


def sgd(updates_per_step):
    return optax.sgd(0.1)


def test_readme_example(tmp_path, monkeypatch):
    import_example("pmjax.nets", tmp_path, monkeypatch)
    build = NetBuilder(shape=(4, 4, 1), latent_dim=3, family="linear", net_args={}, batch_norm={})
    spec = plugins.load("methods", "pm").Method().spec(build)
    state = init_state(spec, sgd, jax.random.key(0))
    step = jax.jit(partial(train_step, spec=spec, optimizer=sgd, ema_decay=0.9))
    batch = np.random.default_rng(0).integers(0, 256, (8, 4, 4, 1), dtype=np.uint8)
    for _ in range(2):
        state, metrics = step(state, batch)
    assert int(state.step) == 2
    assert all(np.isfinite(value) for value in jax.tree.leaves(jax.device_get(metrics)))


def test_every_family_is_in_the_readme():
    text = (ROOT / "pmjax" / "nets" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in plugins.names("nets") if f"`{name}.py`" not in text]
