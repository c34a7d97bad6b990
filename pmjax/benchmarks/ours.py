"""Our side of `pmjax.bench`."""

import math
import os
import time
from functools import partial
from importlib import metadata

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from pmjax import builders
from pmjax.datasets.batches import batch_indices, stream, to_float
from pmjax.distributed import collectives
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
from pmjax.methods.base import MethodSpec
from pmjax.nets import base as nets
from pmjax.training.step import TrainState, init_state, train_step

_PACKAGES = ("pmjax", "jax", "jaxlib", "flax", "optax", "numpy")


class Side:
    """Our side: the compiled step as `pmjax.train` runs it.

    Attributes:
      start: what the peer starts from: first weights, first random draws, embeddings (stage 2).
      first: {metric: value} of the first step.
      compile_s: seconds of the first dispatch less a later one's: tracing and compilation.
      flops: of a step, by XLA's count.
      peak: FLOP/s that a large matrix product reaches on the same devices, in the same precision.
      memory: bytes that the compiled step needs on a device.
    """

    def __init__(self, settings: ConfigDict, *, stage: int):
        """Builds a stage's game, compiles its step and makes the first dispatch."""
        set_up_cpu(settings.devices)
        chosen = settings if stage == 1 else settings.stage2
        self.waited = 0.0  # seconds in which the devices' next batch was being made
        self._batch_size = settings.data.batch_size if stage == 1 else chosen.batch_size
        self._per_dispatch, self._seed, self._next = chosen.steps_per_dispatch, settings.seed, 0
        mesh = make_mesh(chosen.devices)
        where = "config.data.batch_size" if stage == 1 else "config.stage2.batch_size"
        check_batch(self._batch_size, mesh, where)
        data = builders.dataset(settings, "train").data
        game = builders.stage1_spec(settings, data.shape[1:])
        self.start = {}
        if stage == 2:
            data = self.start["table"] = _embeddings(game, data, settings.seed)
            game = builders.stage2_spec(settings, z=data)
        state = jax.jit(partial(init_state, game))(jax.random.key(settings.seed))
        drawn = draws(settings, stage, state, 0)
        params, stats, drawn = jax.device_get((state.params, state.stats, drawn))
        self.start |= {"params": params, "stats": stats, "draws": drawn}

        budget = settings.data.device_budget_gb * 1e9
        self._table, divided = place_dataset(np.asarray(data), mesh, budget=budget)
        self._rows = partial(batch_indices, len(data), self._batch_size, seed=settings.seed)
        self._stream = (
            None
            if self._table is not None
            else stream(data, batch_size=self._batch_size, seed=settings.seed, start=0, stop=2**40)
        )
        self._run = compile_step(
            partial(
                train_step,
                game=game,
                ema_decay=settings.ema_decay,
                axis=collectives.batch_axis(settings.parallel),
            ),
            mode=settings.parallel,
            mesh=mesh,
            gather=self._table is not None,
            divided=divided,
        )
        self._state = replicate(state, mesh)
        began = time.perf_counter()
        self._state, metrics = self._run(self._state, self._table, self._batches())
        self.first = {name: float(values[0]) for name, values in _read(metrics).items()}
        first_s = time.perf_counter() - began
        self.block(0)
        self.compile_s = max(0.0, first_s - self.block(0)[1])
        compiled = self._run.lower(self._state, self._table, self._batches()).compile()
        self.flops = compiled.cost_analysis()["flops"] * mesh.size
        self.memory = _memory(compiled)
        self.peak = matrix_peak(mesh, settings.precision if stage == 1 else "float32")

        device = mesh.devices.flat[0]
        self.gpu = device.platform in ("gpu", "cuda", "rocm")
        self.device = f"{mesh.size} × {device.device_kind}"
        one_thread_each = device.platform == "cpu" and mesh.size > 1
        self.threads = mesh.size if one_thread_each else os.cpu_count()
        self.versions = {name: metadata.version(name) for name in _PACKAGES}

    def _batches(self) -> np.ndarray:
        began = time.perf_counter()
        batches = self._make_batches()
        self.waited += time.perf_counter() - began
        return batches

    def _make_batches(self) -> np.ndarray:
        steps = range(self._next, self._next + self._per_dispatch)
        self._next = steps.stop
        if self._stream is not None:
            return np.stack([next(self._stream) for _ in steps])
        return np.stack([self._rows(step=step) for step in steps])

    def block(self, seconds: float) -> tuple[int, float]:
        """Makes steps for about so long; returns how many, and the seconds that they took."""
        began, count, pending = time.perf_counter(), 0, None
        with jax.transfer_guard("disallow"):
            while not count or time.perf_counter() - began < seconds:
                self._state, metrics = self._run(self._state, self._table, self._batches())
                if pending is not None:
                    _read(pending)
                pending = metrics
                count += self._per_dispatch
            _read(pending)
        return count, time.perf_counter() - began


def draws(settings: ConfigDict, stage: int, state: TrainState, step: int) -> dict[str, jax.Array]:
    """Returns the random numbers of a step of `pmjax.step.train_step`, for the peer's.

    Args:
      settings: the config.
      stage: 1 or 2.
      state: with the key, and the base of a latent GAN that is fitted.
      step: its number.

    Returns:
      'mu' [B] (method pm, stage 1), and 'bases' [turns, B, p], the draws z' of the latent GAN's
      objectives (stage 2, or joint schedule).
    """
    key, drawn, turn = jax.random.fold_in(state.key, step), {}, 1
    size = settings.data.batch_size if stage == 1 else settings.stage2.batch_size
    if stage == 1 and settings.method == "pm":
        args = settings.method_args
        drawn["mu"] = jax.random.uniform(jax.random.fold_in(key, 0), (size,)) / 2
        turn += args.autoencoder_repeats + args.critic_repeats * args.regularizer
    if settings.prior == "latent_gan" and (stage == 2 or settings.schedule == "joint"):
        args = settings.prior_args
        shape = (size, args.base_dim or settings.latent_dim)
        turns = range(turn, turn + args.critic_repeats + args.generator_repeats)
        keys = [jax.random.fold_in(key, turn) for turn in turns]
        draw = builders.prior(settings).sampler(state.stats.get("base", {}).get("base", {}))
        drawn["bases"] = jnp.stack([draw(key, shape) for key in keys])
    return drawn


def _embeddings(game: MethodSpec, data: np.ndarray, seed: int) -> np.ndarray:
    """Encodes the data by the first weights; a step takes the same time on any embeddings."""
    state = jax.jit(partial(init_state, game))(jax.random.key(seed))
    params, stats, (E, _) = state.params["E"], state.stats["E"], game.nets["E"]
    encode = jax.jit(lambda x: nets.apply(E, params, stats, to_float(x), train=True))
    return np.concatenate([np.asarray(encode(data[i : i + 256])) for i in range(0, len(data), 256)])


def _read(metrics) -> dict[str, np.ndarray]:
    """Fetches a dispatch's metrics and stops at one that is not finite, as the training does."""
    metrics = jax.device_get(metrics)
    for name, values in metrics.items():
        if not np.isfinite(values).all():
            raise UserError(
                f"{name} is not finite: such steps are not worth measuring. Lower "
                f"the learning rate."
            )
    return metrics


def matrix_peak(mesh: jax.sharding.Mesh, precision: str) -> float:
    """Measures the FLOP/s of square matrix products, one on each device at the same time."""
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


def _memory(compiled) -> int:
    """Returns the bytes of a compiled step's arguments, results and temporaries on a device."""
    need = compiled.memory_analysis()
    both = need.alias_size_in_bytes  # arguments that are overwritten by results
    return (
        need.argument_size_in_bytes
        + need.output_size_in_bytes
        + need.temp_size_in_bytes
        + need.generated_code_size_in_bytes
        - both
    )
