"""Trains and evaluates: python -m pmjax.main --config=configs/digits.py --workdir=runs/digits."""

import argparse
import logging
import shlex
import sys

from pmjax import cli, config, paths

log = logging.getLogger(__name__)


def main() -> None:
    """Reads the flags, sets up the process, trains what is not trained yet, and evaluates."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.main",
        description=__doc__,
        epilog="Single values: --config.name=value, such as --config.prior=gmm or "
        "--config.method_args.omega1=1.0. Variants of every file in configs: paper, author, "
        "runlocal; a file's get_config lists more.",
    )
    parser.add_argument("--config", required=True, help="Python file, optionally with :variant")
    parser.add_argument("--workdir", required=True, type=paths.local, help="of all results")
    flags, overrides = cli.parse(parser)

    settings = config.load(flags.config, overrides)

    # JAX and its libraries take seconds to import: mistakes in flags and config come before.
    from pmjax import api
    from pmjax.distributed import accelerators, maintenance, rendezvous
    from pmjax.distributed.mesh import set_up_cpu
    from pmjax.distributed.processes import Stopped
    from pmjax.evals import runner, tables
    from pmjax.reporting.run_log import RunLog
    from pmjax.storage import resource_errors, workdir
    from pmjax.training import stages

    def evaluate() -> None:
        values = runner.evaluate(flags.workdir, api.load(flags.workdir))
        print(tables.listing(values), flush=True)

    spec = rendezvous.process_spec()
    set_up_cpu(spec.local_devices or settings.devices // spec.count)
    cli.cache_compilations()
    joined = rendezvous.join(spec, workdir.shared_config(settings))
    with joined as group, workdir.lock(flags.workdir, group):
        accelerators.start()
        group.run_on_primary("the workdir", lambda: workdir.claim(settings, flags.workdir))
        workdir.check_shared(flags.workdir, group)
        run_log = RunLog(flags.workdir, process=group.index)
        maintenance.watch()
        try:
            with resource_errors.as_user_errors(flags.workdir), group.signals(steps=False):
                stages.fit(settings, flags.workdir, run_log, group)
                group.run_on_primary("evaluation", evaluate)
        except Stopped as stopped:
            command = "python -m pmjax.main " + shlex.join(sys.argv[1:])
            log.warning("%s To resume, run the same command:\n  %s", stopped, command)
        finally:
            run_log.close()


if __name__ == "__main__":
    cli.run(main)
