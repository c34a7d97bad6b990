"""Measures the training step: python -m pmjax.bench --config=configs/digits.py --peer=torch.

Or what evaluation spends its time on: python -m pmjax.bench --evaluation --peer=torch.

Each side runs in a process of its own, so that thread pools do not disturb each other, and only
one works at any moment: blocks of ours and of the peer's alternate.
"""

import argparse
import datetime
import importlib.util
import json
import platform
import sys
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pmjax import builders, cli, config, errors, plugins
from pmjax.benchmarks import aot, evaluation
from pmjax.benchmarks.process import BLOCKS, Process, cores, in_turn, ratio, spread, versus
from pmjax.errors import UserError
from pmjax.priors.base import TrainedPrior


def measure(
    settings: ConfigDict, *, stage: int, peer: str | None, seconds: float
) -> dict[str, Any]:
    """Measures the step of a stage, ours and the peer's in turn.

    Args:
      settings: the config.
      stage: 1 or 2.
      peer: a file of `pmjax/benchmarks/peers`, or None.
      seconds: for which each side works.

    Returns:
      What bench's JSON has for a stage.
    """
    given = {"settings": settings, "stage": stage}
    title = f"stage {stage}"
    ours = Process("pmjax.benchmarks.ours", **given, title=f"{title}: pmjax")
    sides = {"pmjax": ours}
    if peer:
        given |= {name: ours.about[name] for name in ("start", "gpu")}
        sides[peer] = Process(peer, **given, cores=cores(), title=f"{title}: {peer}")
    for side in sides.values():
        side.block(0.1)
    blocks = in_turn(sides, blocks=BLOCKS, seconds=seconds, title=title)
    chosen = settings if stage == 1 else settings.stage2
    batch_size = settings.data.batch_size if stage == 1 else chosen.batch_size
    result = {"batch_size": batch_size, "steps_per_dispatch": chosen.steps_per_dispatch}
    for name, side in sides.items():
        step_ms = [1e3 * spent / count for count, spent, _ in blocks[name]]
        about, spent = side.about, spread("step_ms", step_ms)
        result[name] = {
            **spent,
            "images_per_s": 1e3 * batch_size / spent["step_ms"],
            "steps": sum(count for count, _, _ in blocks[name]),
            "blocks_ms": step_ms,
            "compile_s": about["compile_s"],
            "first": about["first"],
            "device": about["device"],
            "threads": about["threads"],
            "versions": about["versions"],
        }
    about, took = ours.about, sum(spent for _, spent, _ in blocks["pmjax"])
    rate = about["flops"] / (1e-3 * result["pmjax"]["step_ms"])
    result["pmjax"] |= {
        "flops_per_example": about["flops"] / batch_size,
        "flops_per_s": rate,
        "peak_flops_per_s": about["peak"],
        "share_of_peak": rate / about["peak"],
        "memory_bytes": about["memory"],
        "waiting_for_data": sum(waited for _, _, waited in blocks["pmjax"]) / took,
    }
    if peer:
        result["ratio"] = ratio(result[peer]["blocks_ms"], result["pmjax"]["blocks_ms"])
        found, expected = result[peer]["first"], result["pmjax"]["first"]
        result["first_differs"] = max(abs(found[name] - expected[name]) for name in found)
    return result


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def table(stage: int, result: dict[str, Any], peer: str | None) -> str:
    """Returns a stage's results as text."""
    lines = [
        f"stage {stage}: batch {result['batch_size']}, steps a dispatch "
        f"{result['steps_per_dispatch']}, on {result['pmjax']['device']}",
        f"  {'':8}{'ms a step':>10}  {'lowest-highest':>16}{'examples/s':>12}{'compile s':>11}",
    ]
    for name in ("pmjax", peer) if peer else ("pmjax",):
        side = result[name]
        between = f"{side['step_ms_low']:.3g}-{side['step_ms_high']:.3g}"
        compiled = "" if side["compile_s"] is None else f"{side['compile_s']:.1f}"
        lines.append(
            f"  {name:8}{side['step_ms']:10.3f}  {between:>16}"
            f"{side['images_per_s']:12.0f}{compiled:>11}"
        )
    ours = result["pmjax"]
    lines.append(
        f"  {ours['flops_per_example'] / 1e9:.3g} GFLOP an example; "
        f"{ours['flops_per_s'] / 1e9:.4g} GFLOP/s, {ours['share_of_peak']:.0%} of what matrix "
        f"products reach here; {ours['memory_bytes'] / 1e9:.3g} GB a device; "
        f"{ours['waiting_for_data']:.1%} of the time waiting for data"
    )
    if peer:
        lines.append(
            f"  {versus(result['ratio'], peer)}; the first step's losses differ by "
            f"{result['first_differs']:.1g}"
        )
    return "\n".join(lines)


def _stages(wanted: str, settings: ConfigDict) -> list[int]:
    """Returns which stages to measure."""
    if wanted == "1":
        return [1]
    if settings.schedule == "joint":
        why = "with config.schedule='joint', stage 1 trains the prior, too"
    elif not isinstance(builders.prior(settings), TrainedPrior):
        why = f"the prior '{settings.prior}' is fitted at once"
    else:
        return [2] if wanted == "2" else [1, 2]
    if wanted == "2":
        raise UserError(f"There is no stage 2 to measure: {why}. Take --stage=1.")
    return [1]


def _check_peer(peer: str | None) -> None:
    if peer is None:
        return
    if peer not in plugins.names("peers"):
        raise errors.unknown("peer", peer, plugins.names("peers"))
    package = peer.partition("_")[0]
    if importlib.util.find_spec(package) is None:
        raise UserError(f'--peer={peer} needs the package {package}: pip install "pmjax[bench]".')


def _check(flags: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Refuses flags that do not go together, before anything is measured."""
    _check_peer(flags.peer)
    if flags.json and not flags.json.absolute().parent.is_dir():
        raise UserError(f"--json={flags.json}: there is no directory {flags.json.parent}.")
    others = [f"--{name}" for name in ("config", "stage", "aot") if getattr(flags, name)]
    others += [f"--config.{name}" for name in overrides]
    if flags.evaluation and others:
        raise UserError(
            f"--evaluation measures no training step: leave {', '.join(others)} out, or it."
        )
    if not (flags.evaluation or flags.config):
        raise UserError(
            "Say what to measure: the training step of --config=FILE, such as "
            "--config=configs/digits.py, or --evaluation."
        )


def main() -> None:
    """Reads the flags, measures, prints tables and writes JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.bench",
        description=__doc__,
        epilog="Single values: --config.name=value, such as --config.data.batch_size=128.",
    )
    parser.add_argument("--config", help="a Python file, and :variant or not")
    parser.add_argument("--evaluation", action="store_true", help="features, Fréchet distance")
    parser.add_argument("--peer", help="what to compare with: torch, torch_compiled")
    parser.add_argument("--stage", choices=("1", "2", "both"), help="both by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="for each side and stage")
    parser.add_argument("--json", type=Path, help="where to write the results")
    parser.add_argument("--aot", help="compile for TPUs instead, not run: v5e:2x2,v5e:16x16")
    parser.add_argument("--aot_batch", type=int, default=128, help="images a chip")
    parser.add_argument("--aot_data", default=aot.DATA, help="shape of the set of images")
    flags, overrides = cli.parse(parser)
    _check(flags, overrides)
    report = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "arguments": sys.argv[1:],
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": cores(),
    }
    if flags.evaluation:
        report["evaluation"] = evaluation.measure(peer=flags.peer, seconds=flags.seconds)
    else:
        report |= _steps(flags, config.load(flags.config, overrides))
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=2) + "\n")


def _steps(flags: argparse.Namespace, settings: ConfigDict) -> dict[str, Any]:
    """Measures the training steps, or compiles them for TPUs; returns what JSON has for it."""
    report = {"config": settings.to_dict(), "stages": {}}
    if flags.aot:
        shapes, data = flags.aot.split(","), aot.parse_data(flags.aot_data)
        report["aot"] = aot.measure(settings, shapes, per_chip=flags.aot_batch, data=data)
        print(aot.table(report["aot"]), flush=True)
    for stage in [] if flags.aot else _stages(flags.stage or "both", settings):
        result = measure(settings, stage=stage, peer=flags.peer, seconds=flags.seconds)
        report["stages"][str(stage)] = result
        print(table(stage, result, flags.peer), flush=True)
    return report


if __name__ == "__main__":
    cli.run(main)
