"""Makes a figure or table of the paper again: python -m pmjax.reproduce NAME --workdir=DIR.

Writes DIR/table.md, DIR/table.json, DIR/figures/ and DIR/report.html. The same command again goes
on where the last one stopped: finished runs are skipped, others resumed, failed ones tried again.
"""

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from pmjax import cli, errors
from pmjax.errors import UserError


def main() -> None:
    """Reads the flags, trains what is not finished, and writes tables and figures."""
    from pmjax import plugins

    parser = argparse.ArgumentParser(
        prog="python -m pmjax.reproduce",
        description=__doc__.split("\n")[0],
        epilog="Single values for all runs: --config.name=value, such as --config.steps=1000.",
    )
    parser.add_argument("name", help=", ".join(plugins.names("reproductions")))
    parser.add_argument("--workdir", required=True, type=Path, help="where everything is kept")
    parser.add_argument("--seeds", help="of each run, such as 0,1,2")
    parser.add_argument("--methods", help="runs to make, by name, separated by commas (all)")
    parser.add_argument("--runlocal", action="store_true", help="tiny nets, few steps, one seed")
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, each with its share of cores and GPUs"
    )
    parser.add_argument(
        "--report_only", action="store_true", help="start nothing: tabulate what is there"
    )
    flags, overrides = cli.parse(parser)
    cli.cache_compilations()
    reproduce(
        flags.name,
        flags.workdir,
        seeds=flags.seeds,
        methods=flags.methods,
        runlocal=flags.runlocal,
        jobs=flags.jobs,
        report_only=flags.report_only,
        overrides=overrides,
        command="python -m pmjax.reproduce " + shlex.join(sys.argv[1:]),
    )


def reproduce(
    name: str,
    directory: Path,
    *,
    seeds: str | None = None,
    methods: str | None = None,
    runlocal: bool = False,
    jobs: int = 1,
    report_only: bool = False,
    overrides: dict[str, str] | None = None,
    command: str = "",
) -> None:
    """Runs what is not finished of a reproduction, then writes its tables and figures.

    Args:
      name: a file in pmjax/reproductions.
      directory: where everything is kept.
      seeds: separated by commas (None: the reproduction's).
      methods: names of runs, separated by commas (None: all).
      runlocal: whether it is a smoke run, of one seed unless told otherwise.
      jobs: runs at once.
      report_only: whether to start no run.
      overrides: dotted name -> text, for the configs of all runs.
      command: as typed, for the report.

    Raises:
      UserError: for unknown names; for runs of another config in the directory; and at the end, if
        runs have failed.
    """
    from pmjax import plugins
    from pmjax.reproductions import runs
    from pmjax.reproductions.base import Study

    reproduction = plugins.load("reproductions", name).REPRODUCTION
    if jobs < 1:
        raise UserError(f"--jobs={jobs} must be at least 1.")
    overrides = dict(overrides or {})
    for key, flag in (("seed", "--seeds"), ("method", "--methods")):
        if key in overrides:
            raise UserError(f"A reproduction takes {flag}=…, not --config.{key}.")
    if overrides and not reproduction.runs:
        raise UserError(f"'{name}' has no configs; it takes no --config.{next(iter(overrides))}.")
    study = Study(
        reproduction=reproduction,
        directory=directory,
        runs=_chosen(reproduction.runs, methods),
        seeds=_seeds(seeds) or (reproduction.seeds[:1] if runlocal else reproduction.seeds),
        configs=_configs(),
        overrides=overrides,
        runlocal=runlocal,
        say=lambda line: print(line, file=sys.stderr, flush=True),
    )
    planned = runs.plan(study)
    if report_only:
        _results(study, command)
        return
    with runs.alone(directory) as lock:
        start = partial(runs.start, slots=jobs, lock=lock)
        runs.work(study, planned, slots=jobs, start=start)
    _results(study, command)
    if study.failures:
        raise UserError(
            f"{len(study.failures)} of {len(planned)} runs failed:\n"
            + "\n".join(f"  {run} seed {seed} {why}" for (run, seed), why in study.failures.items())
            + "\nThe same command tries them again."
        )


def _results(study, command: str) -> None:
    """Writes the tables as soon as they are there, and again with the figures."""
    from pmjax.reproductions import tables as pages
    from pmjax.reproductions.base import Table

    tables, figures = [], []
    for result in study.reproduction.results(study):
        if isinstance(result, Table):
            tables.append(result)
            pages.write(study, tables, figures, command=command)
        else:
            figures.append(result)
    page = pages.write(study, tables, figures, command=command)
    study.say((study.directory / "table.md").read_text())
    study.say(f"Report: {page}")


def _chosen(runs: tuple, names: str | None) -> tuple:
    if names is None:
        return runs
    known = {run.name: run for run in runs}
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    for name in wanted:
        if name not in known:
            raise errors.unknown("run of --methods", name, known)
    if not wanted:
        raise UserError(f"--methods names no run. Valid: {', '.join(known)}.")
    return tuple(run for run in runs if run.name in wanted)


def _seeds(text: str | None) -> tuple[int, ...]:
    try:
        return tuple(dict.fromkeys(int(seed) for seed in (text or "").split(",") if seed.strip()))
    except ValueError:
        raise UserError(f"--seeds={text} must be whole numbers such as 0,1,2.") from None


def _configs() -> Path:
    """Returns the directory of config files: here, or beside the package's sources."""
    for parent in (Path(), Path(__file__).parents[1]):
        if (parent / "configs" / "default.py").is_file():
            return parent / "configs"
    raise UserError(
        "There is no directory configs/ here with the config files: start this command in the "
        "repository's root."
    )


if __name__ == "__main__":
    cli.run(main)
