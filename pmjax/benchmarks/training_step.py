"""Measures the training step of each stage, ours and a peer's."""

from typing import Any

from ml_collections import ConfigDict

from pmjax.benchmarks import process
from pmjax.benchmarks.process import columns, compile_column, ratio, spread


def measure(
    settings: ConfigDict, *, stage: int, peer: str | None, seconds: float
) -> dict[str, Any]:
    """Measures the step of a stage, in alternating blocks of ours and the peer's.

    Args:
      settings: the config.
      stage: 1 or 2.
      peer: a file of `pmjax/benchmarks/peers`, or None for ours alone.
      seconds: of work per side.

    Returns:
      The entry of the stage in bench's JSON.
    """
    title = f"stage {stage}"
    sides = process.start("TrainingStep", peer=peer, title=title, settings=settings, stage=stage)
    for side in sides.values():
        side.block(0.1)
    blocks = process.alternate(sides, blocks=process.BLOCKS, seconds=seconds, title=title)
    of_stage = settings if stage == 1 else settings.stage2
    batch_size = settings.data.batch_size if stage == 1 else of_stage.batch_size
    result = {"batch_size": batch_size, "steps_per_dispatch": of_stage.steps_per_dispatch}
    for name, side in sides.items():
        step_ms = [1e3 * block.seconds / block.units for block in blocks[name]]
        time = spread("step_ms", step_ms)
        result[name] = {
            **time,
            "images_per_s": 1e3 * batch_size / time["step_ms"],
            "steps": sum(block.units for block in blocks[name]),
            "blocks_ms": step_ms,
            "first": side.about.first,
            **side.about.environment(),
        }
    about = sides["pmjax"].about
    rate = about.flops / (1e-3 * result["pmjax"]["step_ms"])
    waited = sum(block.waited for block in blocks["pmjax"])
    result["pmjax"] |= {
        "flops_per_example": about.flops / batch_size,
        "flops_per_s": rate,
        "peak_flops_per_s": about.peak,
        "share_of_peak": rate / about.peak,
        "memory_bytes": about.memory,
        "waiting_for_data": waited / sum(block.seconds for block in blocks["pmjax"]),
    }
    if peer:
        result["ratio"] = ratio(result[peer]["blocks_ms"], result["pmjax"]["blocks_ms"])
        found, expected = result[peer]["first"], result["pmjax"]["first"]
        result["first_differs"] = max(abs(found[name] - expected[name]) for name in found)
    return result


def table(stage: int, result: dict[str, Any], peer: str | None) -> str:
    """Returns the results of a stage as text."""
    lines = [
        f"stage {stage}: batch {result['batch_size']}, steps per dispatch "
        f"{result['steps_per_dispatch']}, on {result['pmjax']['device']}",
        f"  {'':8}{'ms/step':>10}  {'lowest-highest':>16}{'examples/s':>12}{'compile s':>11}",
    ]
    for name in ("pmjax", peer) if peer else ("pmjax",):
        side = result[name]
        line = f"  {name:8}{columns(side, 'step_ms', '.3f')}{side['images_per_s']:12.0f}"
        lines.append(line + compile_column(side))
    ours = result["pmjax"]
    lines.append(
        f"  {ours['flops_per_example'] / 1e9:.3g} GFLOP/example; "
        f"{ours['flops_per_s'] / 1e9:.4g} GFLOP/s, {ours['share_of_peak']:.0%} of the rate of "
        f"large matrix products; {ours['memory_bytes'] / 1e9:.3g} GB per device; "
        f"{ours['waiting_for_data']:.1%} of the time waiting for data"
    )
    if peer:
        compared = process.describe_ratio(result["ratio"], peer)
        differ = f"the losses of the first step differ by {result['first_differs']:.1g}"
        lines.append(f"  {compared}; {differ}")
    return "\n".join(lines)
