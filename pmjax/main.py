"""Trains and evaluates: python -m pmjax.main --config=configs/digits.py --workdir=runs/digits."""

import argparse
import sys
from pathlib import Path

from pmjax import cli


def main() -> None:
    """Reads the flags, sets up the process, trains what is not trained yet, and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.main",
        description=__doc__,
        epilog="Single values: --config.name=value, such as --config.prior=gmm or "
        "--config.method_args.omega1=1.0.",
    )
    parser.add_argument("--config", required=True, help="a Python file, and :variant or not")
    parser.add_argument("--workdir", required=True, type=Path, help="where results are kept")
    flags, overrides = cli.parse(parser)

    from pmjax import config, parallel, workdir

    settings = config.load(flags.config, overrides)
    parallel.use_all_cores(settings.data.batch_size, settings.devices)
    cli.cache_compilations()

    from pmjax import evaluate, train
    from pmjax.report import Report

    workdir.claim(settings, flags.workdir)
    report = Report(flags.workdir)
    try:
        train.fit(settings, flags.workdir, report)
        evaluate.evaluate(flags.workdir, say=report.say)
    except train.Stopped as stopped:
        report.say(
            f"{stopped} To go on, run the same command:\n  python -m pmjax.main "
            + " ".join(sys.argv[1:])
        )
    finally:
        report.close()


if __name__ == "__main__":
    cli.run(main)
