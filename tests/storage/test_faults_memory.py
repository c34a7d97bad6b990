"""Memory that does not suffice: of the devices, and of the machine."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pmjax import config
from pmjax.distributed import host_memory
from pmjax.distributed.host_memory import free_memory
from pmjax.distributed.processes import ProcessGroup
from pmjax.errors import UserError
from pmjax.storage import resource_errors
from pmjax.training import loop, stages
from tests.distributed.host_process import Metrics
from tests.training.test_faults_numbers import duel, fit

TERABYTES = 40_000  # examples, the cube of whose number is more than a process can address


def test_a_device_out_of_memory_names_the_batch_size_and_suggests_accumulation(
    tmp_path, monkeypatch
):
    settings = config.load(
        "configs/swiss_roll.py", {"data.batch_size": str(TERABYTES), "steps": "2"}
    )

    def hungry(settings, shape):
        spec = duel("hinge", apart=True)

        def loss(inner, nets, s, key):
            found, metrics = inner(nets, s, key)
            v = s.x[:, 0]
            every_three = jnp.sort(v[:, None, None] * v[None, :, None] + v[None, None, :])
            return found + 1e-9 * jax.lax.stop_gradient(every_three).mean(), metrics

        (objective,) = spec.objectives
        inner = objective.loss
        objective = dataclasses.replace(objective, loss=lambda *args: loss(inner, *args))
        nets = {"D": spec.nets["D"]._replace(input_shape=shape)}
        return dataclasses.replace(spec, nets=nets, objectives=(objective,))

    monkeypatch.setattr(stages.builders, "stage1_spec", hungry)
    with pytest.raises(UserError) as error:
        stages.fit(settings, tmp_path, Metrics(), ProcessGroup())
    message = str(error.value)
    assert (
        f"stage1: the devices are out of memory with config.data.batch_size={TERABYTES}" in message
    )
    assert "RESOURCE_EXHAUSTED: Out of memory allocating" in message
    assert "--config.data.batch_size=20000 --config.optimizer.accumulate=2" in message


@pytest.mark.parametrize(("batch_size", "devices"), [(1, 1), (2, 1), (3, 1), (8, 8)])
def test_the_advice_for_too_little_memory_is_a_batch_that_can_be_trained(batch_size, devices):
    full = type("JaxRuntimeError", (Exception,), {})("RESOURCE_EXHAUSTED")
    given = {"batch_size": batch_size, "accumulate": 1, "devices": devices}
    with pytest.raises(UserError, match=r"Use smaller nets, with a new --workdir; or keep"):
        with resource_errors.device_memory("stage1", **given, keys=("size", "accumulate")):
            raise full


def test_data_beyond_the_machine_s_free_memory_are_streamed_to_the_same_result(
    tmp_path, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, logger="pmjax")
    data = np.random.default_rng(0).uniform(0.9, 1.1, (64, 1)).astype(np.float32)
    options = {"data": data, "steps": 20}
    kept = fit(tmp_path / "kept", duel("hinge", apart=True), **options)
    monkeypatch.setattr(loop, "free_memory", lambda: 2 * data.nbytes - 2)
    streamed = fit(tmp_path / "streamed", duel("hinge", apart=True), **options)
    assert "(half of this machine's free memory) on each of 1 devices; streaming." in caplog.text
    jax.tree.map(np.testing.assert_array_equal, streamed, kept)


def test_free_memory_is_at_most_what_the_machine_has():
    total = resource_errors.os.sysconf("SC_PAGE_SIZE") * resource_errors.os.sysconf("SC_PHYS_PAGES")
    assert 0 < free_memory() <= total


@pytest.mark.parametrize(
    "files, free",
    [
        ({"memory.max": "1000", "memory.current": "700"}, 300),
        (
            {
                "memory.max": "1000",
                "memory.current": "700",
                "memory.stat": "anon 100\ninactive_file 500\nactive_file 100\n",
            },
            800,
        ),
        ({"memory.max": "1000", "memory.current": "7", "memory.stat": "inactive_file 9"}, 1000),
        ({"memory.max": "max", "memory.current": "700"}, None),
        (
            {
                "memory/memory.limit_in_bytes": "1000",
                "memory/memory.usage_in_bytes": "700",
                "memory/memory.stat": "inactive_file 5\ntotal_inactive_file 500\n",
            },
            800,
        ),
    ],
    ids=["v2 without stat", "v2", "more files than used", "no limit", "v1"],
)
def test_reclaimable_file_cache_of_a_container_counts_as_free(files, free, tmp_path, monkeypatch):
    monkeypatch.setattr(host_memory, "_CGROUP", tmp_path)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    assert free_memory() == free or free is None and free_memory() > 1000


def test_too_little_memory_is_one_message():
    with pytest.raises(UserError, match="memory is too small .*Unable to allocate"):
        with resource_errors.as_user_errors():
            np.ones(1 << 45)
