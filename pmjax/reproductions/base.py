"""Figures and tables by one command each, one file each, found by name: `pmjax.reproduce NAME`.

A file `pmjax/reproductions/NAME.py` defines REPRODUCTION, a `Reproduction`: a config file, the runs
that are made of it, and a function that says what is tabulated and drawn of them:

    def results(study: Study) -> Iterator[Table | Figure]

Each run is an ordinary `pmjax.main`, once for every seed, in DIR/runs/<run>/seed<k>; `_runs` starts
those that are not finished. `results` may be asked for while runs are missing or have failed: a
table says so, a figure leaves them out. What needs no runs (`theory`) computes in `results`.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pmjax import config, plugins
from pmjax.errors import UserError
from pmjax.reporting.images import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """What is trained, once for every seed, and the rows that it gives a table.

    Attributes:
      name: of its directory, and for --methods.
      label: in tables and figures.
      method: a file in pmjax/methods.
      prior: a file in pmjax/priors; '': the method's own, and the config's if it has none.
      also: further priors on the same embeddings, each a row of its own.
      overrides: dotted name -> value, for the config.
    """

    name: str
    label: str
    method: str
    prior: str = ""
    also: tuple[str, ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A quantity of a table.

    Attributes:
      title: its heading.
      key: of the metric; '{prior}' stands for the row's prior. What has no '{prior}' belongs to
        the autoencoder, and stands in the run's first row only.
      over: key of a metric to divide by, seed by seed.
      paper: run's name -> the value that the paper gives.
      protocol: how the paper measured it.
    """

    title: str
    key: str
    over: str = ""
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    protocol: str = ""


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: its labels, and for each column {seed: value} and perhaps the paper's value."""

    labels: tuple[str, ...]
    values: tuple[Mapping[int, float], ...]
    paper: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `labels` are the headings of the rows' labels, `note` stands below."""

    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A reproduction.

    Attributes:
      title: of the report.
      results: yields its tables and figures.
      config: name of a file in configs/.
      runs: what is trained.
      overrides: of all runs.
      runlocal: of all runs in a smoke run, which takes the config's variant ':runlocal'.
      seeds: unless told otherwise.
    """

    title: str
    results: "Callable[[Study], Iterator[Table | Figure]]"
    config: str = ""
    runs: tuple[Run, ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    runlocal: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = (0, 1, 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A reproduction in a directory, with what its user chose.

    Attributes:
      reproduction: what is reproduced.
      directory: where.
      runs: those of the reproduction that were asked for.
      seeds: of each run.
      configs: the directory of config files.
      overrides: dotted name -> text, over everything else.
      runlocal: whether it is a smoke run.
      failures: (run's name, seed) -> why it failed.
      say: shows a line.
    """

    reproduction: Reproduction
    directory: Path
    runs: tuple[Run, ...]
    seeds: tuple[int, ...]
    configs: Path
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)
    runlocal: bool = False
    failures: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)
    say: Callable[[str], None] = print

    @property
    def figures(self) -> Path:
        """Where figures are kept; made if it is not there."""
        folder = self.directory / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def config(self) -> str:
        """Returns the config that runs are started with: path, and variant in a smoke run."""
        path = str(self.configs / self.reproduction.config)
        return f"{path}:runlocal" if self.runlocal else path

    def changes(self, run: Run, seed: int) -> dict[str, str]:
        """Returns dotted name -> text of all that a run changes of the config."""
        values = {"method": run.method}
        if prior := run.prior or own_prior(run.method):
            values["prior"] = prior
        values |= {"eval.baselines": run.also} | self.reproduction.overrides | run.overrides
        if self.runlocal:
            values |= self.reproduction.runlocal
        values |= {"seed": seed} | self.overrides
        return {name: _text(value) for name, value in values.items()}

    def settings(self, run: Run, seed: int):
        """Returns a run's complete config; `UserError` names the run."""
        try:
            return config.load(self.config(), self.changes(run, seed))
        except UserError as error:
            raise UserError(f"Run '{run.name}': {error}") from None

    def workdir(self, run: Run, seed: int) -> Path:
        """Returns where a run is kept."""
        return self.directory / "runs" / run.name / f"seed{seed}"

    def finished(self, run: Run) -> list[int]:
        """Returns the seeds that are trained and evaluated."""
        return [seed for seed in self.seeds if self.metrics(run, seed)]

    def iter_samples(self) -> list[tuple[Run, int]]:
        """Returns the runs that figures can show, each with its first finished seed."""
        return [(run, seeds[0]) for run in self.runs if (seeds := self.finished(run))]

    def metrics(self, run: Run, seed: int) -> dict[str, float]:
        """Returns a finished run's metrics, or nothing."""
        path = self.workdir(run, seed) / "metrics.json"
        if (run.name, seed) in self.failures or not path.is_file():
            return {}
        try:
            return json.loads(path.read_text())["metrics"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and run again.") from error

    def priors(self, run: Run) -> tuple[str, ...]:
        """Returns the priors that a run is evaluated with, its own first."""
        settings = self.settings(run, self.seeds[0])
        return tuple(dict.fromkeys((settings.prior, *settings.eval.baselines)))

    def missing(self) -> list[tuple[Run, int, str]]:
        """Returns the runs without metrics, and why."""
        return [
            (run, seed, self.failures.get((run.name, seed), "not run yet"))
            for run in self.runs
            for seed in self.seeds
            if not self.metrics(run, seed)
        ]

    def table(self, title: str, columns: Iterable[Column], note: str = "") -> Table:
        """Tabulates the runs: a row for each and for each of its priors."""
        columns, rows = tuple(columns), []
        for run in self.runs:
            for prior in self.priors(run):
                first = prior == self.priors(run)[0]
                shown = [first or "{prior}" in column.key for column in columns]
                values = tuple(
                    self._values(run, column, prior) if show else {}
                    for column, show in zip(columns, shown, strict=True)
                )
                paper = tuple(column.paper.get(run.name) if first else None for column in columns)
                rows.append(Row((run.label, prior), values, paper))
        return Table(title, ("method", "prior"), columns, tuple(rows), note)

    def _values(self, run: Run, column: Column, prior: str) -> dict[int, float]:
        values = {}
        for seed in self.seeds:
            metrics = self.metrics(run, seed)
            key, over = column.key.format(prior=prior), column.over.format(prior=prior)
            if key in metrics and (not over or metrics.get(over)):
                values[seed] = metrics[key] / (metrics[over] if over else 1.0)
        return values


def own_prior(method: str) -> str:
    """Returns the prior that a method brings with it, or ''."""
    return getattr(plugins.load("methods", method).Method, "prior", "")


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
