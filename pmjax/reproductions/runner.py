"""Runs a reproduction: selects and trains its runs, then writes tables and figures."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from pmjax import config, errors, plugins
from pmjax.errors import UserError
from pmjax.reporting.images import Figure
from pmjax.reproductions import jobs, tables
from pmjax.reproductions.base import Run, Study, Table
from pmjax.schema import words

log = logging.getLogger(__name__)


def reproduce(
    name: str,
    directory: Path,
    *,
    seeds: str | None = None,
    methods: str | None = None,
    runlocal: bool = False,
    slots: int = 1,
    report_only: bool = False,
    overrides: Mapping[str, str] | None = None,
    command: str = "",
) -> Study:
    """Trains the unfinished runs of a reproduction and writes its tables and figures.

    Args:
      name: a file in pmjax/reproductions.
      directory: of the runs and results.
      seeds: separated by commas (None: the reproduction's; of a smoke run, the first).
      methods: names of runs, separated by commas (None: all).
      runlocal: whether it is a smoke run.
      slots: number of runs at the same time.
      report_only: whether to start no run.
      overrides: {dotted name: text} for the configs of all runs.
      command: as typed, for the report.

    Returns:
      The study, with the failures of its runs.

    Raises:
      UserError: for unknown names, and for runs of another config in the directory.
    """
    reproduction = plugins.load("reproductions", name).REPRODUCTION
    if slots < 1:
        raise UserError(f"--jobs={slots} must be at least 1.")
    overrides = dict(overrides or {})
    for key, flag in (("seed", "--seeds"), ("method", "--methods")):
        if key in overrides:
            raise UserError(f"Use {flag}=… for a reproduction, not --config.{key}.")
    if overrides and not reproduction.runs:
        raise UserError(f"'{name}' has no configs: omit --config.{next(iter(overrides))}.")
    study = Study(
        reproduction=reproduction,
        directory=directory,
        runs=select(reproduction.runs, methods),
        seeds=_seeds(seeds) or (reproduction.seeds[:1] if runlocal else reproduction.seeds),
        configs=_configs(),
        overrides=overrides,
        runlocal=runlocal,
    )
    planned = jobs.plan(study)
    if not report_only:
        jobs.check_platform()
        with jobs.locked(directory) as lock:
            start = partial(jobs.start, slots=slots, lock=lock)
            jobs.work(study, planned, slots=slots, start=start)
    _write_results(study, command)
    return study


def check_failures(study: Study) -> None:
    """Raises a `UserError` if runs have failed."""
    if study.failures:
        total = len(study.runs) * len(study.seeds)
        raise UserError(
            f"{len(study.failures)} of {total} runs failed:\n"
            + "\n".join(f"  {run} seed {seed} {why}" for (run, seed), why in study.failures.items())
            + "\nRun the same command to try them again."
        )


def _write_results(study: Study, command: str) -> None:
    """Writes the tables as soon as they are known, then again with the figures."""
    found: list[Table] = []
    figures: list[Figure] = []
    for result in study.reproduction.results(study):
        if isinstance(result, Table):
            found.append(result)
            tables.write(study, found, figures, command=command)
        else:
            figures.append(result)
    log.info("Report: %s", tables.write(study, found, figures, command=command))


def select(runs: tuple[Run, ...], names: str | None) -> tuple[Run, ...]:
    """Returns the runs with the given names, separated by commas, or all of them."""
    if names is None:
        return runs
    known = {run.name: run for run in runs}
    wanted = words(names)
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
        raise UserError(f"--seeds={text} must be integers such as 0,1,2.") from None


def _configs() -> Path:
    """Returns the directory of config files."""
    if folders := config.directories():
        return folders[0]
    raise UserError(
        "There is no directory configs/ with config files here: start this command in the root of "
        "the repository."
    )
