"""The example in the methods' README trains."""

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
    import_example("pmjax.methods", tmp_path, monkeypatch)
    build = NetBuilder(
        shape=(4, 4, 1),
        latent_dim=3,
        family="mlp",
        net_args={"width": 8, "layers": 1},
        batch_norm={"momentum": 0.9},
    )
    spec = plugins.load("methods", "denoising").Method(noise=0.2).spec(build)
    state = init_state(spec, sgd, jax.random.key(0))
    step = jax.jit(partial(train_step, spec=spec, optimizer=sgd, ema_decay=0.9))
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 4, 4, 1), dtype=np.uint8)
    losses = []
    for batch in images[[0, 0]]:
        state, metrics = step(state, batch)
        losses.append(float(metrics["recon"]))
    assert int(state.step) == 2 and losses[1] < losses[0]


def test_every_method_is_in_the_readme():
    text = (ROOT / "pmjax" / "methods" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in plugins.names("methods") if f"`{name}.py`" not in text]
