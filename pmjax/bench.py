"""Measures the training step: python -m pmjax.bench --config=configs/digits.py --peer=torch.

Or the costs of evaluation: python -m pmjax.bench --evaluation --peer=torch. Each side runs in its
own process, one at a time: blocks of ours and of the peer's alternate.
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

from pmjax import builders, cli, config, errors, paths, plugins
from pmjax.benchmarks import aot, evaluation, training_step
from pmjax.datasets.decode_pool import cores
from pmjax.errors import UserError
from pmjax.priors.base import TrainedPrior


def main() -> None:
    """Parses the flags, measures, prints tables and writes JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.bench",
        description=__doc__,
        epilog="Single values: --config.name=value, such as --config.data.batch_size=128.",
    )
    parser.add_argument("--config", help="a config file, optionally with :variant")
    parser.add_argument("--evaluation", action="store_true", help="features, Fréchet distance")
    parser.add_argument("--peer", help="the other side: torch, torch_compiled")
    parser.add_argument("--stage", choices=("1", "2", "both"), help="both by default")
    parser.add_argument("--seconds", type=float, default=20.0, help="per side and stage")
    parser.add_argument("--json", type=paths.local, help="output file for the results")
    parser.add_argument("--aot", help="only compile, for TPUs: v5e:2x2,v5e:16x16")
    parser.add_argument("--aot_batch", type=int, default=128, help="images per chip")
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
        report |= _measure_steps(flags, config.load(flags.config, overrides))
    if flags.json:
        flags.json.write_text(json.dumps(report, indent=2) + "\n")


def _measure_steps(flags: argparse.Namespace, settings: ConfigDict) -> dict[str, Any]:
    """Measures the training steps, or compiles them for TPUs; returns their part of the JSON."""
    report: dict[str, Any] = {"config": settings.to_dict(), "stages": {}}
    if flags.aot:
        shapes, data = flags.aot.split(","), aot.parse_data(flags.aot_data)
        report["aot"] = aot.measure(settings, shapes, per_chip=flags.aot_batch, data=data)
        print(aot.table(report["aot"]), flush=True)
        return report
    given = {"peer": flags.peer, "seconds": flags.seconds}
    for stage in _stages(flags.stage or "both", settings):
        result = training_step.measure(settings, stage=stage, **given)
        report["stages"][str(stage)] = result
        print(training_step.table(stage, result, flags.peer), flush=True)
    return report


def _stages(wanted: str, settings: ConfigDict) -> list[int]:
    """Returns the stages to measure."""
    if wanted == "1":
        return [1]
    if settings.schedule == "joint":
        why = "with config.schedule='joint', stage 1 trains the prior, too"
    elif not isinstance(builders.prior(settings), TrainedPrior):
        why = f"the prior '{settings.prior}' is fitted at once"
    else:
        return [2] if wanted == "2" else [1, 2]
    if wanted == "2":
        raise UserError(f"There is no stage 2 to measure: {why}. Use --stage=1.")
    return [1]


def _check(flags: argparse.Namespace, overrides: dict[str, str]) -> None:
    """Rejects invalid combinations of flags before anything is measured."""
    if flags.peer is not None:
        if flags.peer not in plugins.names("peers"):
            raise errors.unknown("peer", flags.peer, plugins.names("peers"))
        package = flags.peer.partition("_")[0]
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f'--peer={flags.peer} needs the package {package}: pip install "pmjax[bench]".'
            )
    if flags.json and not flags.json.absolute().parent.is_dir():
        raise UserError(f"--json={flags.json}: there is no directory {flags.json.parent}.")
    others = [f"--{name}" for name in ("config", "stage", "aot") if getattr(flags, name)]
    others += [f"--config.{name}" for name in overrides]
    if flags.evaluation and others:
        raise UserError(
            f"--evaluation measures no training step: omit {', '.join(others)}, or --evaluation."
        )
    if not (flags.evaluation or flags.config):
        raise UserError(
            "Specify what to measure: the training step of --config=FILE, such as "
            "--config=configs/digits.py, or --evaluation."
        )


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


if __name__ == "__main__":
    cli.run(main)
