"""Our side of the benchmarks: the training step and the features, as the commands run them."""

import itertools
import math
import os
import time
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from pmjax import builders
from pmjax.benchmarks.evaluation import VARIANT
from pmjax.benchmarks.process import About, Block
from pmjax.datasets.batches import batch_indices, stream, to_float
from pmjax.distributed import accelerators, host_memory
from pmjax.distributed.compile import compile_step, compiler_options
from pmjax.distributed.mesh import (
    BATCH,
    check_batch,
    make_mesh,
    place_dataset,
    replicate,
    set_up_cpu,
)
from pmjax.errors import UserError
from pmjax.evals.features import inception_2015
from pmjax.methods.base import MethodSpec
from pmjax.nets import base as nets
from pmjax.priors import latent_gan
from pmjax.training.optimizers import stage1_optimizer, stage2_optimizer
from pmjax.training.step import TrainState, init_state, train_step

PACKAGES = ("pmjax", "jax", "jaxlib", "flax", "optax", "numpy")
GPUS = ("gpu", "cuda", "rocm")  # platforms


class TrainingStep:
    """The compiled step of a stage, as `pmjax.training.loop` runs it."""

    def __init__(self, settings: ConfigDict, *, stage: int):
        """Compiles the step and makes the first dispatch."""
        set_up_cpu(settings.devices)
        of_stage = settings if stage == 1 else settings.stage2
        self._waited = 0.0  # seconds spent waiting for batches
        self._batch_size = settings.data.batch_size if stage == 1 else of_stage.batch_size
        self._per_dispatch = of_stage.steps_per_dispatch
        mesh = make_mesh(of_stage.devices)
        where = "config.data.batch_size" if stage == 1 else "config.stage2.batch_size"
        check_batch(self._batch_size, mesh, where)
        data = builders.dataset(settings, "train").data
        spec = builders.stage1_spec(settings, data.shape[1:])
        optimizer = stage1_optimizer(settings)
        start: dict[str, Any] = {}  # what the peer starts from
        if stage == 2:
            data = start["table"] = _embeddings(spec, data, settings.seed)
            spec = builders.stage2_spec(settings, z=data)
            optimizer = stage2_optimizer(settings)
        init = jax.jit(partial(init_state, spec, optimizer))
        state = init(jax.random.key(settings.seed))
        arrays = (state.params, state.stats, draws(settings, stage, state, 0))
        start |= dict(zip(("params", "stats", "draws"), jax.device_get(arrays), strict=True))

        budget = settings.data.device_budget_gb * 1e9
        self._table, divided = place_dataset(np.asarray(data), mesh, budget=budget)
        if self._table is None:
            self._stream = stream(
                data, batch_size=self._batch_size, seed=settings.seed, start=0, stop=2**40
            )
        else:  # of the rows in the table
            rows = partial(batch_indices, len(data), self._batch_size, seed=settings.seed)
            self._stream = (rows(step=step) for step in itertools.count())
        self._run = compile_step(
            partial(train_step, spec=spec, optimizer=optimizer, ema_decay=settings.ema_decay),
            mode=settings.parallel,
            mesh=mesh,
            gather=self._table is not None,
            divided=divided,
        )
        self._state = replicate(state, mesh)
        began = time.perf_counter()
        self._state, metrics = self._run(self._state, self._table, self._batches())
        first = {name: float(values[0]) for name, values in _read(metrics).items()}
        first_s = time.perf_counter() - began
        self.block(0)
        compile_s = max(0.0, first_s - self.block(0).seconds)
        compiled = self._run.lower(self._state, self._table, self._batches()).compile()
        device = mesh.devices.flat[0]
        one_thread_each = device.platform == "cpu" and mesh.size > 1
        self.about = About(
            first=first,
            device=f"{mesh.size} × {device.device_kind}",
            threads=mesh.size if one_thread_each else os.cpu_count() or 1,
            versions={name: metadata.version(name) for name in PACKAGES},
            compile_s=compile_s,
            gpu=device.platform in GPUS,
            start=start,
            flops=compiled.cost_analysis()["flops"] * mesh.size,
            peak=matrix_peak(mesh, settings.precision if stage == 1 else "float32"),
            memory=device_memory(compiled),
        )

    def _batches(self) -> np.ndarray:
        began = time.perf_counter()
        batches = np.stack(list(itertools.islice(self._stream, self._per_dispatch)))
        self._waited += time.perf_counter() - began
        return batches

    def block(self, seconds: float) -> Block:
        """Makes steps for about this long; like training, it reads metrics one dispatch late."""
        began, waited, count, pending = time.perf_counter(), self._waited, 0, None
        with jax.transfer_guard("disallow"):
            while not count or time.perf_counter() - began < seconds:
                self._state, metrics = self._run(self._state, self._table, self._batches())
                if pending is not None:
                    _read(pending)
                pending = metrics
                count += self._per_dispatch
            _read(pending)
        return Block(count, time.perf_counter() - began, self._waited - waited)


class Features:
    """The features of Inception 2015, as `pmjax.evaluate` computes them."""

    def __init__(self, *, weights: Path, images: np.ndarray):
        """Compiles the net for a batch of uint8 images [B, H, W, 3]."""
        host_memory.keep_freed_memory(one_arena=True)  # as `pmjax.evaluate` does
        accelerators.start()
        self._images = images
        self._args: dict[str, Any] = {"variant": VARIANT, "weights": weights, "verify": False}
        began = time.perf_counter()
        first = self._features(1)
        first_s = time.perf_counter() - began
        began = time.perf_counter()
        self._features(1)
        self._batch_s = time.perf_counter() - began
        device = jax.local_devices()[0]
        self.about = About(
            first=first,
            device=f"{jax.local_device_count()} × {device.device_kind}",
            threads=os.cpu_count() or 1,
            versions={name: metadata.version(name) for name in ("pmjax", "jax", "jaxlib")},
            compile_s=max(0.0, first_s - self._batch_s),
            gpu=device.platform in GPUS,
        )

    def _features(self, batches: int) -> np.ndarray:
        parts = itertools.repeat(self._images, batches)
        stream = inception_2015.stream(parts, batch_size=len(self._images), **self._args)
        return np.concatenate(list(stream))

    def block(self, seconds: float) -> Block:
        """Computes features for about this long."""
        batches = max(1, round(seconds / self._batch_s))
        began = time.perf_counter()
        count = len(self._features(batches))
        return Block(count, time.perf_counter() - began)


def draws(settings: ConfigDict, stage: int, state: TrainState, step: int) -> dict[str, jax.Array]:
    """Returns the random numbers of a step of `train_step`, for the peer.

    Returns:
      'mu' [B] (method pm, stage 1), and 'bases' [turns, B, p], the draws z' of the latent GAN's
      objectives (stage 2, or the joint schedule).
    """
    key, drawn, turn = jax.random.fold_in(state.key, step), {}, 1
    size = settings.data.batch_size if stage == 1 else settings.stage2.batch_size
    if stage == 1 and settings.method == "pm":
        args = settings.method_args
        drawn["mu"] = jax.random.uniform(jax.random.fold_in(key, 0), (size,)) / 2
        turn += args.autoencoder_repeats + args.critic_repeats * args.regularizer
    prior = builders.prior(settings)
    if isinstance(prior, latent_gan.Prior) and (stage == 2 or settings.schedule == "joint"):
        args = settings.prior_args
        shape = (size, args.base_dim or settings.latent_dim)
        turns = range(turn, turn + args.critic_repeats + args.generator_repeats)
        keys = [jax.random.fold_in(key, turn) for turn in turns]
        draw = prior.sampler(state.stats.get("base", {}).get("base", {}))
        drawn["bases"] = jnp.stack([draw(key, shape) for key in keys])
    return drawn


def _embeddings(spec: MethodSpec, data: np.ndarray, seed: int) -> np.ndarray:
    """Encodes the data with untrained weights: a step takes the same time on any embeddings."""
    E = spec.nets["E"]
    x = jnp.zeros((2, *E.input_shape))
    params, stats = jax.jit(partial(nets.init, E.module))(jax.random.key(seed), x)
    encode = jax.jit(lambda x: nets.apply(E.module, params, stats, to_float(x), train=True))
    return np.concatenate([np.asarray(encode(data[i : i + 256])) for i in range(0, len(data), 256)])


def _read(metrics: Any) -> dict[str, np.ndarray]:
    """Fetches the metrics of a dispatch and, like training, rejects values that are not finite."""
    values = jax.device_get(metrics)
    for name, value in values.items():
        if not np.isfinite(value).all():
            raise UserError(
                f"{name} is not finite: the measured steps would be meaningless. Lower the "
                "learning rate."
            )
    return values


def matrix_peak(mesh: jax.sharding.Mesh, precision: str) -> float:
    """Measures the FLOP/s of square matrix products, one per device at the same time."""
    platform = mesh.devices.flat[0].platform
    size = 1024 if platform == "cpu" else 8192
    a = jax.random.normal(jax.random.key(0), (mesh.size, size, size), precision)
    a = jax.device_put(a, NamedSharding(mesh, P(BATCH)))
    product = jax.jit(lambda a: a @ a, compiler_options=compiler_options(mesh))
    jax.block_until_ready(product(a))
    best = math.inf
    for _ in range(10):
        began = time.perf_counter()
        jax.block_until_ready(product(a))
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 * mesh.size / best


def device_memory(compiled: Any) -> int:
    """Returns the bytes per device of a step's arguments, results and temporaries."""
    need = compiled.memory_analysis()
    both = need.alias_size_in_bytes  # arguments that results overwrite
    data = need.argument_size_in_bytes + need.output_size_in_bytes - both
    return data + need.temp_size_in_bytes + need.generated_code_size_in_bytes
