"""What a reproduction is: a config, runs of it, and the tables and figures made from them."""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from pmjax import config, plugins
from pmjax.errors import UserError
from pmjax.reporting.images import Figure


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A model to train, once per seed, and its rows in the table."""

    name: str  # of its directory, also for --methods
    label: str  # in tables and figures
    method: str = ""  # a file in pmjax/methods; by default the name
    prior: str = ""  # a file in pmjax/priors; by default the method's own, or else the config's
    also: tuple[str, ...] = ()  # further priors on the same embeddings, one row each
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # {dotted name: value}

    def __post_init__(self) -> None:
        object.__setattr__(self, "method", self.method or self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Column:
    """A quantity of a table.

    In `key` and `over`, '{prior}' is replaced by the row's prior. A key without '{prior}' describes
    the autoencoder and appears in the run's first row only.
    """

    title: str
    key: str  # of the metric
    over: str = ""  # key of a metric to divide by, per seed
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)  # {run: paper's value}
    protocol: str = ""  # of the paper's measurement


@dataclasses.dataclass(frozen=True)
class Row:
    """A row: its labels, and per column {seed: value} and the paper's value, if any."""

    labels: tuple[str, ...]
    values: tuple[Mapping[int, float], ...]
    paper: tuple[float | None, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; `labels` are the headings of the rows' labels, `note` is the text below."""

    title: str
    labels: tuple[str, ...]
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    note: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reproduction:
    """A figure or table of the paper, or a comparison of its kind.

    `results` yields tables and figures. Runs may be missing or have failed: tables say so, figures
    leave them out.
    """

    title: str  # of the report
    results: "Callable[[Study], Iterator[Table | Figure]]"
    config: str = ""  # name of a file in configs/
    runs: tuple[Run, ...] = ()
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of all runs
    runlocal: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of runs in a smoke run
    seeds: tuple[int, ...] = (0, 1, 2)  # by default


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """A reproduction in a directory, with the user's choices."""

    reproduction: Reproduction
    directory: Path  # of the runs and results
    runs: tuple[Run, ...]  # the selected ones
    seeds: tuple[int, ...]  # of each run
    configs: Path  # directory of config files
    overrides: Mapping[str, str] = dataclasses.field(default_factory=dict)  # highest priority
    runlocal: bool = False  # a smoke run
    failures: dict[tuple[str, int], str] = dataclasses.field(default_factory=dict)  # {run: reason}

    @property
    def figures(self) -> Path:
        """The directory of figures, created on first use."""
        folder = self.directory / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def config(self) -> str:
        """Returns the --config of all runs: a path, with the variant of a smoke run."""
        path = str(self.configs / self.reproduction.config)
        return f"{path}:runlocal" if self.runlocal else path

    def changes(self, run: Run, seed: int) -> dict[str, str]:
        """Returns {dotted name: text} of everything that a run overrides in the config."""
        values: dict[str, Any] = {"method": run.method, "eval.baselines": run.also}
        if prior := run.prior or getattr(plugins.load("methods", run.method).Method, "prior", ""):
            values["prior"] = prior
        values |= {**self.reproduction.overrides, **run.overrides}
        if self.runlocal:
            values |= self.reproduction.runlocal
        values |= {"seed": seed, **self.overrides}
        return {name: _text(value) for name, value in values.items()}

    def settings(self, run: Run, seed: int) -> ConfigDict:
        """Returns the complete config of a run; a `UserError` names the run."""
        try:
            return config.load(self.config(), self.changes(run, seed))
        except UserError as error:
            raise UserError(f"Run '{run.name}': {error}") from None

    def workdir(self, run: Run, seed: int) -> Path:
        """Returns the workdir of a run."""
        return self.directory / "runs" / run.name / f"seed{seed}"

    def shown(self) -> list[tuple[Run, int]]:
        """Returns the finished runs, each with its first finished seed, for figures."""
        finished = [[(run, s) for s in self.seeds if self.metrics(run, s)] for run in self.runs]
        return [each[0] for each in finished if each]

    def metrics(self, run: Run, seed: int) -> dict[str, float]:
        """Returns the metrics of a finished run, else {}."""
        path = self.workdir(run, seed) / "metrics.json"
        if (run.name, seed) in self.failures or not path.is_file():
            return {}
        try:
            return json.loads(path.read_text())["metrics"]
        except (ValueError, KeyError) as error:
            raise UserError(f"{path} is damaged ({error}). Delete it and run again.") from error

    def priors(self, run: Run) -> tuple[str, ...]:
        """Returns the priors that a run is evaluated with; the first is its own."""
        settings = self.settings(run, self.seeds[0])
        return tuple(dict.fromkeys((settings.prior, *settings.eval.baselines)))

    def missing(self) -> list[tuple[Run, int, str]]:
        """Returns the runs without metrics, with the reason."""
        return [
            (run, seed, self.failures.get((run.name, seed), "not run yet"))
            for run in self.runs
            for seed in self.seeds
            if not self.metrics(run, seed)
        ]

    def table(self, title: str, columns: Iterable[Column], note: str = "") -> Table:
        """Tabulates the runs, with one row per run and prior."""
        columns, rows = tuple(columns), []
        for run in self.runs:
            for index, prior in enumerate(self.priors(run)):
                values = tuple(
                    self._values(run, c, prior) if index == 0 or "{prior}" in c.key else {}
                    for c in columns
                )
                paper = tuple(None if index else c.paper.get(run.name) for c in columns)
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


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
