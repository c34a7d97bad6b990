"""Batches from a table that is divided over the devices, and what a mesh consists of."""

import jax
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh

from pmjax.distributed import collectives, sharded_gather
from pmjax.distributed.compile import compile_step
from pmjax.distributed.mesh import make_mesh, place_dataset, replicate

EXAMPLES, BATCH = 1003, 512
IMAGES = np.random.default_rng(0).integers(0, 256, (EXAMPLES, 2, 2, 3), dtype=np.uint8)
RANDOM = np.random.default_rng(1).integers(0, EXAMPLES, (2, BATCH), dtype=np.int32)
ROWS = {
    "random": RANDOM,
    "one device has all": RANDOM % 100,
    "each device has another's": np.sort(RANDOM)[:, ::-1],
    "one image": np.full_like(RANDOM, EXAMPLES - 1),
}


@pytest.mark.parametrize("mode, devices", [("jit", 4), ("jit", 8), ("pmap", 8)])
def test_a_divided_table_gives_the_requested_rows(mode, devices):
    mesh = make_mesh(devices)
    table, divided = place_dataset(IMAGES, mesh, budget=IMAGES.nbytes)
    assert divided == IMAGES.shape[1:]
    run = compile_step(
        lambda state, images: (state, collectives.all_gather(images)),
        mode=mode,
        mesh=mesh,
        gather=True,
        divided=divided,
    )
    state = replicate(np.zeros(()), mesh)
    for name, rows in ROWS.items():
        state, found = run(state, table, rows)
        np.testing.assert_array_equal(found, IMAGES[rows], err_msg=name)


def test_a_device_may_have_no_rows_of_the_table():
    table, _ = place_dataset(IMAGES[:9], make_mesh(8), budget=IMAGES[:9].nbytes)
    np.testing.assert_array_equal(table.reshape(-1, 2, 2, 3)[:9], IMAGES[:9])


@pytest.mark.parametrize("devices", [2, 4, 16, 256])
def test_shuffled_batches_need_one_capacity(devices):
    examples, size = 162_770, devices * 128
    order = np.random.default_rng(0).permutation(examples)[: examples // size * size]
    usual = sharded_gather.usual_capacity(size, devices)
    assert (
        sharded_gather.capacity_for(order.reshape(-1, size), devices, -(-examples // devices))
        == usual
    )
    assert usual < 128


@pytest.mark.parametrize(
    "device, expected",
    [(AbstractDevice("TPU v5 lite", 1, "tpu"), True), (AbstractDevice("cpu", None, "cpu"), False)],
)
def test_a_mesh_of_tpus_is_recognized(device, expected):
    assert not collectives.on_tpus()
    with jax.sharding.use_abstract_mesh(AbstractMesh((2,), ("batch",), abstract_device=device)):
        assert collectives.on_tpus() is expected
