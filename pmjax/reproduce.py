"""Reproduces a figure or table of the paper: python -m pmjax.reproduce NAME --workdir=DIR.

It writes DIR/table.md, DIR/table.json, DIR/figures/ and DIR/report.html. The same command continues
where the last one stopped: it skips finished runs, resumes others, and retries failed ones.
"""

import argparse
import shlex
import sys

from pmjax import cli, paths, plugins


def main() -> None:
    """Parses the flags, trains the unfinished runs, and prints the tables."""
    parser = argparse.ArgumentParser(
        prog="python -m pmjax.reproduce",
        description=(__doc__ or "").split("\n")[0],
        epilog="Single values for all runs: --config.name=value, such as --config.steps=1000.",
    )
    parser.add_argument("name", help=", ".join(plugins.names("reproductions")))
    parser.add_argument("--workdir", required=True, type=paths.local, help="of runs and results")
    parser.add_argument("--seeds", help="of each run, such as 0,1,2")
    parser.add_argument("--methods", help="names of runs, separated by commas (default: all)")
    parser.add_argument("--runlocal", action="store_true", help="tiny nets, few steps, one seed")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at a time, each with its share of cores and GPUs"
    )
    parser.add_argument(
        "--report_only", action="store_true", help="start nothing: tabulate the finished runs"
    )
    flags, overrides = cli.parse(parser)
    cli.cache_compilations()
    from pmjax.reproductions import runner  # loads JAX, whose compilation cache is now set

    study = runner.reproduce(
        flags.name,
        flags.workdir,
        seeds=flags.seeds,
        methods=flags.methods,
        runlocal=flags.runlocal,
        slots=flags.jobs,
        report_only=flags.report_only,
        overrides=overrides,
        command="python -m pmjax.reproduce " + shlex.join(sys.argv[1:]),
    )
    print((study.directory / "table.md").read_text())
    runner.check_failures(study)


if __name__ == "__main__":
    cli.run(main)
