"""A small run, and how tests call the commands."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

# A whole run of seconds: perceptrons on digits.
SMALL = [
    "--config=configs/digits.py:runlocal",
    "--config.nets=mlp",
    "--config.nets_args.width=32",
    "--config.latent_dim=8",
    "--config.prior_args.width=32",
    "--config.steps=60",
    "--config.stage2.steps=60",
    "--config.stage2.steps_per_dispatch=10",
    "--config.checkpoint.every=10",
    "--config.log_every=5",
    "--config.eval.metrics=reconstruction,latent",
    "--config.eval.num_samples=64",
]


def run_command(module: str, *args: str, **options) -> subprocess.CompletedProcess:
    """Runs python -m pmjax.MODULE to its end, from the repository's root."""
    return subprocess.run(
        [sys.executable, "-m", f"pmjax.{module}", *map(str, args)],
        cwd=ROOT,
        env=os.environ | options.pop("env", {}),
        capture_output=True,
        text=True,
        timeout=600,
        **options,
    )
