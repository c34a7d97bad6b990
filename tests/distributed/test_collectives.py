"""Operations on the global batch: the axis is found where there is one, and nowhere else."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from pmjax.distributed import collectives
from pmjax.distributed.mesh import BATCH, make_mesh

X = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)


def everything(x, key):
    """Returns what each operation makes of the batch, also inside a scan."""

    def mean_square(x):
        return collectives.mean(jnp.square(x).mean())

    _, scanned = lax.scan(lambda carry, row: (carry, mean_square(row)), 0, jnp.stack([x, 2 * x]))
    return {
        "mean": collectives.mean(x.mean(0)),
        "scanned": scanned,
        "all": collectives.all_gather(x),
    }, {
        "rolled": collectives.roll_batch(x),
        "random": collectives.sample_batch(jax.random.normal, key, x.shape),
    }


@pytest.mark.parametrize("devices", [1, 4])
def test_jit_and_pmap_compute_the_same(devices):
    key = jax.random.key(0)
    of_batch, rows = jax.jit(everything)(X, key)
    np.testing.assert_array_equal(rows["rolled"], np.roll(X, -1, 0))
    np.testing.assert_array_equal(rows["random"], jax.random.normal(key, X.shape))
    np.testing.assert_array_equal(of_batch["all"], X)
    mesh = make_mesh(devices)
    with jax.sharding.set_mesh(mesh):
        found = jax.jit(everything)(jax.device_put(X, NamedSharding(mesh, P(BATCH))), key)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6), found, (of_batch, rows))
    run = jax.pmap(
        everything, axis_name=BATCH, in_axes=(0, None), out_axes=(None, 0),
        devices=jax.devices()[:devices],
    )  # fmt: skip
    of_batch_by_pmap, rows_by_pmap = run(X.reshape(devices, -1, 3), key)
    rows_by_pmap = jax.tree.map(lambda a: a.reshape(8, 3), rows_by_pmap)
    compare = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(compare, of_batch_by_pmap, of_batch)
    jax.tree.map(compare, rows_by_pmap, rows)


def test_the_axis_has_a_name_under_pmap_alone():
    found = []

    def record(x):
        found.append(collectives.batch_axis())
        return x

    record(X)
    jax.jit(record)(X)
    jax.vmap(record)(X)
    with jax.sharding.set_mesh(make_mesh(2)):
        jax.jit(record)(X)
    assert found == [None] * 4
    jax.pmap(record, axis_name=BATCH, devices=jax.devices()[:2])(X.reshape(2, 4, 3))
    assert found[-1] == BATCH
