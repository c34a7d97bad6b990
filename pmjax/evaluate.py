"""Evaluates a workdir's model: python -m pmjax.evaluate --workdir=runs/digits."""

import argparse
import datetime
import json
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

from pmjax import cli

# Whose versions can change a number.
_PACKAGES = ("pmjax", "jax", "flax", "optax", "numpy", "scipy", "scikit-learn", "POT", "pillow")


def evaluate(workdir: Path, *, say: Callable[[str], None], overrides=None) -> dict[str, float]:
    """Computes the metrics that the workdir's config names, and writes them with the report.

    Args:
      workdir: of a finished run.
      say: shows a line of progress.
      overrides: {dotted name: text} for the config's `eval` part.

    Returns:
      The metrics, which metrics.json has too, with what it takes to compute them again.

    Raises:
      UserError: if the workdir has no model, or a metric does not fit its data.
    """
    import jax

    from pmjax import build, config, evals, figures, model, report
    from pmjax import workdir as workdirs

    trained = model.load(workdir)
    settings = config.override(config.read(workdir / workdirs.CONFIG), overrides or {}, "eval.")
    train, test = (build.dataset(settings, split) for split in ("train", "test"))
    ctx = evals.Context(
        model=trained,
        train=train,
        test=test,
        priors=tuple(dict.fromkeys([settings.prior, *settings.eval.baselines])),
        seed=settings.seed,
        num_samples=settings.eval.num_samples,
        fresh=evals.fresh_points(settings.data.name),
    )
    values = evals.run(settings.eval.metrics, ctx, say=say)
    provenance = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "config": workdirs.digest(settings),
        "seed": settings.seed,
        "data": {"train": train.fingerprint, "test": test.fingerprint},
        "num_samples": settings.eval.num_samples,
        "devices": [device.device_kind for device in jax.devices()],
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in _PACKAGES},
    }
    fresh = workdir / "metrics.json.part"
    fresh.write_text(json.dumps({"metrics": values} | provenance, indent=2) + "\n")
    fresh.replace(workdir / "metrics.json")
    page = report.write_html(
        workdir,
        title=f"pmjax: {settings.data.name}, {settings.method} with prior {settings.prior}",
        config=settings.to_dict(),
        metrics=values,
        figures=figures.draw(ctx, workdir),
    )
    width = max(map(len, values))
    say("\n".join(f"{name:{width}}  {value:.5g}" for name, value in values.items()))
    say(f"Report: {page}")
    return values


def main() -> None:
    """Reads the flags and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.evaluate",
        description=__doc__,
        epilog="Single values of the config's eval part: --config.eval.num_samples=10000.",
    )
    parser.add_argument("--workdir", required=True, type=Path, help="of a finished run")
    flags, overrides = cli.parse(parser)
    cli.cache_compilations()
    evaluate(flags.workdir, say=lambda line: print(line, flush=True), overrides=overrides)


if __name__ == "__main__":
    cli.run(main)
