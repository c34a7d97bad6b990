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

    from pmjax import config
    from pmjax.distributed import rendezvous
    from pmjax.distributed.mesh import set_up_cpu
    from pmjax.storage import workdir

    settings = config.load(flags.config, overrides)
    place = rendezvous.place()
    set_up_cpu(place.local_devices or settings.devices // place.count)
    cli.cache_compilations()

    from pmjax.distributed import maintenance
    from pmjax.distributed.processes import Log
    from pmjax.evals import runner
    from pmjax.reporting.report import Report
    from pmjax.storage import resource_errors
    from pmjax.training import loop

    met = rendezvous.join(place, workdir.shared_config(settings))
    with met as hosts, workdir.lock(flags.workdir, hosts):
        hosts.run_on_primary("the workdir", lambda: workdir.claim(settings, flags.workdir))
        workdir.check_shared(flags.workdir, hosts)
        first = hosts.index == 0
        report = Report(flags.workdir) if first else Log(flags.workdir, hosts.index)
        hosts.note = (lambda line: None) if first else report.say
        maintenance.watch(report.say)
        try:
            with resource_errors.as_user_errors(flags.workdir), hosts.signals(steps=False):
                loop.fit(settings, flags.workdir, report, hosts)
                hosts.run_on_primary(
                    "evaluation", lambda: runner.evaluate(flags.workdir, say=report.say)
                )
        except loop.Stopped as stopped:
            report.say(
                f"{stopped} To go on, run the same command:\n  python -m pmjax.main "
                + " ".join(sys.argv[1:])
            )
        finally:
            report.close()


if __name__ == "__main__":
    cli.run(main)
