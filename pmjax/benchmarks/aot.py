"""Compiles the training step for TPUs that are not attached, and reports the compiler's estimates.

libtpu's compiler needs no chip. It states the memory and FLOPs per chip and estimates the cycles of
every scheduled operation, from which times, rates and shares are derived. Nothing is run.
"""

import dataclasses
import importlib.util
import logging
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib import metadata
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh
from ml_collections import ConfigDict

from pmjax import builders
from pmjax.benchmarks.ours import device_memory
from pmjax.benchmarks.tpus import EXAMPLES, all_reduce_s, all_to_all_s, parse_shape
from pmjax.distributed.compile import compile_step
from pmjax.distributed.mesh import BATCH
from pmjax.errors import UserError
from pmjax.training.optimizers import stage1_optimizer
from pmjax.training.step import TrainState, init_state, train_step

log = logging.getLogger(__name__)

DATA = "162770x64x64x3"  # CelebA's training images

# Otherwise libtpu asks a metadata server of Google Cloud for its hardware.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-16",
    "TPU_WORKER_HOSTNAMES": "localhost",
}


def parse_data(text: str) -> tuple[int, ...]:
    """Parses the shape of a table of images."""
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*x[1-9]\d*x[13]", text):
        raise UserError(f"--aot_data={text} must be IMAGESxHEIGHTxWIDTHxCHANNELS, such as {DATA}.")
    return tuple(int(size) for size in text.split("x"))


@dataclasses.dataclass
class Schedule:
    """The costs of a scheduled HLO module, with loops multiplied by their trip counts."""

    cycles: int = 0  # sum of the estimates of all operations
    operations: Counter = dataclasses.field(default_factory=Counter)  # {name and type: cycles}
    collectives: Counter = dataclasses.field(default_factory=Counter)  # {kind: bytes per device}
    unknown_loops: int = 0  # loops without a known trip count, counted as one iteration


_HEAD = re.compile(r"(ENTRY )?%?([\w.-]+) \(.*\{$")
_OPERATION = re.compile(r"\s+(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ([\w-]+)\(")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_BELOW = re.compile(r"ROOT .* compare\([^,]*?%?([\w.-]+), [^,]*?%?([\w.-]+)\), direction=LT")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_CONDITION = re.compile(r"condition=%?([\w.-]+)")
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.-]+)")
_ARRAY = re.compile(r"\b(pred|bf16|f8\w*|[sufc]\d+)\[([\d,]*)\]")
_COLLECTIVES = ("all-reduce", "reduce-scatter", "all-gather", "all-to-all", "collective-permute")


def read(text: str) -> Schedule:
    """Parses the text of a scheduled module.

    The estimate of a fusion covers its contents. Of a conditional, the longest branch counts.
    """
    computations: dict[str, list] = {}
    entry = current = None
    for line in text.splitlines():
        if head := _HEAD.match(line):
            current = computations.setdefault(head[2], [])
            entry = head[2] if head[1] else entry
        elif current is not None and (operation := _OPERATION.match(line)):
            current.append((*operation.groups(), line))
    if entry is None:
        raise ValueError("no ENTRY computation in the HLO text")
    return _walk(computations, entry, 1, Schedule())


def _walk(computations: dict, name: str, times: int, schedule: Schedule) -> Schedule:
    """Adds the costs of a computation, run so many times, to the schedule; returns it."""
    for operation, result, kind, line in computations[name]:
        inner = times
        if kind == "while":
            trips = _trips(computations, line)
            schedule.unknown_loops += trips is None
            inner = times if trips is None else times * trips
        if kind in ("while", "call", "async-start"):
            for called in _CALLED.findall(line):
                _walk(computations, called, inner, schedule)
        elif kind == "conditional":
            names = re.findall(r"%([\w.-]+)", line.partition("), ")[2])
            branches = [
                _walk(computations, n, times, Schedule()) for n in names if n in computations
            ]
            longest = max(branches, key=lambda branch: branch.cycles)
            schedule.cycles += longest.cycles
            schedule.operations += longest.operations
            schedule.collectives += longest.collectives
            schedule.unknown_loops += longest.unknown_loops
        elif not kind.endswith("-done"):
            cycles = times * sum(map(int, _CYCLES.findall(line)))
            schedule.cycles += cycles
            schedule.operations[f"{operation} {result}"] += cycles
            collective = kind.removesuffix("-start")
            if collective in _COLLECTIVES:
                # The start of an all-gather or a permutation has operands, then results.
                both = kind in ("all-gather-start", "collective-permute-start")
                schedule.collectives[collective] += times * _bytes(result) // (1 + both)
    return schedule


def _trips(computations: dict, line: str) -> int | None:
    """Returns the trip count of a loop: as stated, or from JAX's condition `counter < constant`."""
    if known := _TRIPS.search(line):
        return int(known[1])
    condition = computations[_CONDITION.search(line)[1]]  # type: ignore[index]
    for *_, text in condition:
        if below := _BELOW.search(text):
            limits = [_CONSTANT.search(line) for name, *_, line in condition if name == below[2]]
            return int(limits[0][1]) if limits and limits[0] else None
    return None


def _bytes(shape: str) -> int:
    """Returns the bytes of an array or a tuple of arrays in HLO's notation of shapes."""
    total = 0
    for kind, sizes in _ARRAY.findall(shape):
        bits = 8 if kind == "pred" else int(re.findall(r"\d+", kind)[0])
        total += math.prod(int(size) for size in sizes.split(",") if size) * bits // 8
    return total


def measure(
    settings: ConfigDict, shapes: list[str], *, per_chip: int, data: tuple[int, ...]
) -> dict[str, Any]:
    """Compiles the step of stage 1 for slices of TPUs.

    Args:
      settings: the config.
      shapes: of the slices, such as 'v5e:4x4'.
      per_chip: images per chip, instead of the config's batch size.
      data: shape of the table of images.

    Returns:
      The entry of AOT compilation in bench's JSON.

    Raises:
      UserError: for unknown shapes, and without libtpu.
    """
    for shape in shapes:
        parse_shape(shape)
    if per_chip < 1:
        raise UserError(f"--aot_batch={per_chip} must be at least 1.")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError('--aot needs libtpu: pip install "pmjax[tpu]".')
    os.environ |= _ENVIRONMENT
    jax.config.update("jax_platforms", "cpu")
    written = written_flops(settings, per_chip, data[1:])
    results = {}
    for shape in shapes:
        log.info("compiling for %s, which takes minutes", shape)
        results[shape] = _compile(settings, shape, per_chip, data)
        results[shape]["written_gflop"] = written / 1e9
    return {
        "estimated": True,
        "batch_per_chip": per_chip,
        "data": list(data),
        "libtpu": metadata.version("libtpu"),
        "shapes": derive(results),
    }


def lowered(settings: ConfigDict, mesh: Mesh, data: tuple[int, ...]) -> jax.stages.Lowered:
    """Lowers a dispatch of stage 1 for a mesh, with the data where training places it."""
    step, state = _step(settings, data[1:])
    # As in `place_dataset`.
    divided = mesh.size > 1 and math.prod(data) > settings.data.device_budget_gb * 1e8
    table_shape = (mesh.size, -(-data[0] // mesh.size), math.prod(data[1:])) if divided else data
    run = compile_step(
        step, mode="jit", mesh=mesh, gather=True, divided=data[1:] if divided else None
    )
    rows = (settings.steps_per_dispatch, settings.data.batch_size)
    return run.lower(
        state, jax.ShapeDtypeStruct(table_shape, jnp.uint8), jax.ShapeDtypeStruct(rows, jnp.int32)
    )


def _step(settings: ConfigDict, shape: tuple[int, ...]) -> tuple[Callable, TrainState]:
    """Returns the step of stage 1 for images of a shape, and the shapes of its state."""
    spec, optimizer = builders.stage1_spec(settings, shape), stage1_optimizer(settings)
    state = jax.eval_shape(partial(init_state, spec, optimizer), jax.random.key(settings.seed))
    step = partial(train_step, spec=spec, optimizer=optimizer, ema_decay=settings.ema_decay)
    return step, state


def _with_batch(settings: ConfigDict, size: int) -> ConfigDict:
    changed = settings.copy_and_resolve_references()
    changed.data.batch_size = size
    changed.parallel = "jit"
    return changed


def written_flops(settings: ConfigDict, batch_size: int, shape: tuple[int, ...]) -> float:
    """Returns the FLOPs of a step of stage 1, by XLA's count before it optimizes.

    It counts the plain nets, which GPUs run. The forms for TPUs multiply by zeros and resample by
    matrix products, which must not count as useful work.
    """
    step, state = _step(_with_batch(settings, batch_size), shape)
    traced = jax.jit(step).trace(state, jax.ShapeDtypeStruct((batch_size, *shape), jnp.uint8))
    return traced.lower(lowering_platforms=("cuda",)).cost_analysis()["flops"]


def _compile(
    settings: ConfigDict, shape: str, per_chip: int, data: tuple[int, ...]
) -> dict[str, Any]:
    chip, sides = parse_shape(shape)
    try:
        topology = topologies.get_topology_desc(platform="tpu", topology_name=shape, **chip.options)
    except jax.errors.JaxRuntimeError as error:
        if "lockfile" in str(error):
            raise UserError("--aot: another process is using libtpu.") from None
        raise UserError(
            f"--aot={shape}: libtpu has no such slice ({error}). Valid: {EXAMPLES}."
        ) from None
    mesh = Mesh(np.asarray(topology.devices), (BATCH,), axis_types=(AxisType.Auto,))
    began = time.perf_counter()
    changed = _with_batch(settings, per_chip * mesh.size)
    compiled: Any = lowered(changed, mesh, data).compile()
    found = read(compiled.as_text())
    memory, steps = compiled.memory_analysis(), settings.steps_per_dispatch
    return {
        "chips": mesh.size,
        "batch_size": per_chip * mesh.size,
        "compile_s": time.perf_counter() - began,
        "arguments_gb": memory.argument_size_in_bytes / 1e9,
        "temporaries_gb": memory.temp_size_in_bytes / 1e9,
        "output_gb": memory.output_size_in_bytes / 1e9,
        "peak_gb": device_memory(compiled) / 1e9,
        "hbm_gb": chip.hbm / 1e9,
        # XLA counts the body of a loop once; the body is one step.
        "compiled_gflop": compiled.cost_analysis()["flops"] / 1e9,
        "step_cycles": found.cycles / steps,
        "unknown_loops": found.unknown_loops,
        "largest_ms": {
            name: 1e3 * cycles / steps / chip.clock
            for name, cycles in found.operations.most_common(30)
        },
        "collective_mb": {  # of the whole array: the result of a scatter is one chip's part
            kind: size / steps / 1e6 * (mesh.size if kind == "reduce-scatter" else 1)
            for kind, size in found.collectives.items()
        },
        "clock_ghz": chip.clock / 1e9,
        "peak_tflops": chip.peak / 1e12,
    }


_ROWS = (
    ("chips", "chips", "d"),
    ("arguments, GB", "arguments_gb", ".2f"),
    ("temporaries, GB", "temporaries_gb", ".2f"),
    ("output, GB", "output_gb", ".2f"),
    ("peak, GB", "peak_gb", ".2f"),
    ("of memory, GB", "hbm_gb", ".0f"),
    ("GFLOP/step, as written", "written_gflop", ".0f"),
    ("GFLOP/step, as compiled", "compiled_gflop", ".0f"),
    ("est. ms, computation", "compute_ms", ".1f"),
    ("collectives, MB", "collectives_mb", ".1f"),
    ("est. ms on links", "links_ms", ".2f"),
    ("est. ms/step", "step_ms", ".1f"),
    ("est. images/s", "images_per_s_per_chip", ".0f"),
    ("est. share of peak", "share_of_peak", ".1%"),
    ("  with time on links", "share_with_links", ".1%"),
    ("est. efficiency", "efficiency", ".1%"),
    ("seconds to compile", "compile_s", ".0f"),
)


def derive(results: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Adds rates, shares and efficiencies to the figures of each shape.

    The time of a step is that of the estimated cycles plus that of the links, as if communication
    never overlapped with computation. `share_of_peak` is without links.
    """
    for shape, result in results.items():
        chip, sides = parse_shape(shape)
        mb = result["collective_mb"]
        compute_s = result["step_cycles"] / chip.clock
        ideal_s = 1e9 * result["written_gflop"] / chip.peak
        # A reduce-scatter or an all-gather is half of an all-reduce.
        halves = {"all-reduce": 1, "all-to-all": 0}
        moved = sum(size * halves.get(kind, 0.5) for kind, size in mb.items())
        links_s = all_reduce_s(1e6 * moved, chip, sides)
        links_s += all_to_all_s(1e6 * mb.get("all-to-all", 0), chip, sides)
        step_s = compute_s + links_s
        result |= {
            "compute_ms": 1e3 * compute_s,
            "collectives_mb": sum(mb.values()),
            "links_ms": 1e3 * links_s,
            "step_ms": 1e3 * step_s,
            "images_per_s_per_chip": result["batch_size"] / result["chips"] / step_s,
            "share_of_peak": ideal_s / compute_s,
            "share_with_links": ideal_s / step_s,
        }
    for shape, result in results.items():
        generation = shape.partition(":")[0]
        kin = [other for name, other in results.items() if name.partition(":")[0] == generation]
        smallest = min(kin, key=lambda other: other["chips"])
        result["efficiency"] = result["images_per_s_per_chip"] / smallest["images_per_s_per_chip"]
    return results


def table(report: dict[str, Any]) -> str:
    """Returns the results of `measure` as text."""
    (images, *sides), shapes = report["data"], report["shapes"]
    lines = [
        f"Compiled by libtpu {report['libtpu']}, not run: times are ESTIMATES of the compiler.",
        f"Stage 1, {report['batch_per_chip']} images per chip, {images} images of "
        f"{'×'.join(map(str, sides))} on the devices. All figures are per chip.",
        f"  {'':26}" + "".join(f"{name:>12}" for name in shapes),
    ]
    for name, key, form in _ROWS:
        lines.append(f"  {name:26}" + "".join(f"{v[key]:>12{form}}" for v in shapes.values()))
    return "\n".join(lines)
