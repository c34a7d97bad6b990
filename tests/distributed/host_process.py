"""One process of several under test: python tests/distributed/host_process.py SCENARIO DIRECTORY.

`PMJAX_*` say which process it is, as for the commands.
"""

import os
import signal
import sys
import time
from pathlib import Path

import jax
import numpy as np
import optax

from pmjax import plugins
from pmjax.datasets.batches import batch_indices
from pmjax.distributed import rendezvous
from pmjax.distributed.compile import MODES
from pmjax.distributed.mesh import make_mesh, set_up_cpu
from pmjax.distributed.processes import ProcessGroup
from pmjax.methods.base import NetBuilder
from pmjax.training.loop import LoopOptions, train

STEPS, BATCH, EXAMPLES, KEPT = 4, 8, 42, 2  # one epoch at most: no example comes twice
BUDGETS = {"divided": 1000, "streamed": 10}  # bytes; IMAGES has 2688
IMAGES = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 8, 8, 1), dtype=np.uint8)


class Metrics(dict):
    """A run log that keeps the metrics of each step, and calls `after` with it."""

    def __init__(self, after=lambda step: None):
        super().__init__()
        self.after = after

    def resume(self, stage, step):
        self.start = step

    def scalars(self, stage, step, values):
        self[step] = dict(values)

    def status(self, stage, step, steps, values):
        self.after(step)


def fit(
    directory, *, mode="jit", mesh, data=IMAGES, budget=1e9, group=None, steps=STEPS, run_log=None
):
    """Trains pm on perceptrons with SGD; returns {name: value} of all metrics and leaves."""
    build = NetBuilder(
        shape=(8, 8, 1),
        latent_dim=6,
        family="mlp",
        net_args={"width": 16},
        batch_norm={"momentum": 0.9},
    )
    run_log = Metrics() if run_log is None else run_log
    options = LoopOptions(
        stage="stage",
        steps=steps,
        batch_size=BATCH,
        seed=0,
        ema_decay=0.9,
        mode=mode,
        device_budget=budget,
        checkpoint_every=KEPT,
        keep=9,
        log_every=1,
    )
    state = train(
        plugins.load("methods", "pm").Method().spec(build),
        lambda updates_per_step: optax.sgd(0.05),
        data,
        options,
        mesh=mesh,
        directory=Path(directory),
        info={},
        run_log=run_log,
        group=group,
    )
    return flat(run_log, state)


def flat(metrics, state):
    found = {f"{step}/{name}": v for step, row in metrics.items() for name, v in row.items()}
    state = jax.device_get(state.replace(key=jax.random.key_data(state.key)))
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return found | {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def own_rows(layout, group):
    """The examples, but wrong ones wherever this process has nothing to read."""
    if layout == "divided":
        each = 2 * -(-EXAMPLES // 4)
        mine = np.arange(EXAMPLES) // each == group.index
    else:
        rows = [batch_indices(EXAMPLES, BATCH, step, seed=0) for step in range(STEPS)]
        half = BATCH // group.count
        read = np.concatenate([r[group.index * half : (group.index + 1) * half] for r in rows])
        mine = np.isin(np.arange(EXAMPLES), read)
    assert 0 < mine.sum() < EXAMPLES
    return np.where(mine[:, None, None, None], IMAGES, 255 - IMAGES).astype(np.uint8)


def layouts(directory: Path, group: ProcessGroup) -> None:
    """Trains in several ways from the start, and from what one process on one device has saved."""
    mesh = make_mesh()
    for mode in MODES:
        for layout in ("divided", "streamed"):
            options = {"mode": mode, "data": own_rows(layout, group), "budget": BUDGETS[layout]}
            values = fit(directory / f"{mode}_{layout}", mesh=mesh, group=group, **options)
            np.savez(directory / f"{mode}_{layout}_{group.index}.npz", **values)
    values = fit(directory / "from_one", mesh=mesh, group=group, steps=STEPS)
    np.savez(directory / f"from_one_{group.index}.npz", **values)


def trouble(directory: Path, group: ProcessGroup) -> None:
    """Trains without end; at step 3 a process gets a signal: TROUBLE (of TROUBLED, or 1)."""

    def after(step):
        if step == 3 and group.index == int(os.environ.get("TROUBLED", 1)):
            while not (directory / "stage" / str(KEPT)).is_dir():  # which takes both processes
                time.sleep(0.01)
            os.kill(os.getpid(), getattr(signal, os.environ["TROUBLE"]))

    fit(directory, mesh=make_mesh(), group=group, steps=10**6, run_log=Metrics(after))


def after_trouble(directory: Path, group: ProcessGroup) -> None:
    """Trains on from the last checkpoint, to the end."""
    run_log = Metrics()
    values = fit(directory, mesh=make_mesh(), group=group, run_log=run_log)
    assert run_log.start == KEPT, run_log.start
    np.savez(directory / f"end_{group.index}.npz", **values)


def main() -> None:
    scenario, directory = globals()[sys.argv[1]], Path(sys.argv[2])
    spec = rendezvous.process_spec()
    set_up_cpu(spec.local_devices)
    jax.config.update("jax_compilation_cache_dir", str(directory / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    with rendezvous.join(spec, {"scenario": sys.argv[1]}) as group:
        scenario(directory, group)


if __name__ == "__main__":
    main()
