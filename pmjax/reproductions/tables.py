"""Writes tables as Markdown, JSON and HTML, with the report around them."""

import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pmjax.reporting import html
from pmjax.reporting.images import Figure
from pmjax.reproductions.base import Column, Study, Table
from pmjax.storage import atomic


def write(
    study: Study, tables: Sequence[Table], figures: Sequence[Figure], *, command: str
) -> Path:
    """Writes table.md, table.json and report.html; returns the report's path."""
    directory, title = study.directory, study.reproduction.title
    missing = [{"run": run.name, "seed": seed, "why": why} for run, seed, why in study.missing()]
    lines = [f"# {title}", "", f"`{command}`", "", summary(study), ""]
    for table in tables:
        lines += [f"## {table.title}", "", *_markdown(table, study.seeds), ""]
        lines += [f"{note}\n" for note in _notes(table)]
    if missing:
        lines += ["## Missing", "", *(f"- {_missing(entry)}" for entry in missing), ""]
    lines += [f"![{_cell(f.title)}](figures/{Path(f.path).name})\n" for f in figures]
    atomic.write(directory / "table.md", "\n".join(lines).rstrip() + "\n")
    content = {
        "title": title,
        "command": command,
        "runlocal": study.runlocal,
        "seeds": list(study.seeds),
        "tables": [_json(table) for table in tables],
        "missing": missing,
    }
    atomic.write(directory / "table.json", json.dumps(content, indent=2) + "\n")
    page = html.Page(
        title,
        summary=summary(study),
        command=command,
        tables=[_html(table, study.seeds) for table in tables],
        missing=[_missing(entry) for entry in missing],
        figures=figures,
    )
    return html.write(directory / html.FILE, page)


def summary(study: Study) -> str:
    """Returns a sentence on the seeds that the tables average over."""
    smoke = "A smoke run: these numbers do not compare the methods. " if study.runlocal else ""
    if len(study.seeds) == 1:
        return f"{smoke}One seed, {study.seeds[0]}."
    return f"{smoke}Mean ± standard deviation over seeds {', '.join(map(str, study.seeds))}."


def format_values(values: Mapping[int, float], seeds: Sequence[int]) -> str:
    """Returns 'mean ± standard deviation' of {seed: value}, and the number of seeds if not all."""
    if not values:
        return "—"
    mean, spread = mean_and_spread(values)
    if not spread or not math.isfinite(spread):  # one value, or equal values
        text = f"{mean:.4g}"
    else:  # two digits of the spread, and as many decimals of the mean
        decimals = max(0, 1 - math.floor(math.log10(spread)))
        text = f"{mean:.{decimals}f} ± {spread:.{decimals}f}"
        if decimals > 6:
            text = f"{mean:.4g} ± {spread:.2g}"
    return text if len(values) == len(seeds) else f"{text} ({len(values)} of {len(seeds)} seeds)"


def mean_and_spread(values: Mapping[int, float]) -> tuple[float, float | None]:
    """Returns the mean and the sample standard deviation (None for one value)."""
    numbers = list(values.values())
    spread = statistics.stdev(numbers) if len(numbers) > 1 else None
    return statistics.fmean(numbers), spread


def _grid(table: Table, seeds: Sequence[int]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Yields (labels, cells) of the headings, then of each row."""
    headings = []
    for column in table.columns:
        headings += [column.title, "the paper's"] if column.paper else [column.title]
    yield table.labels, headings
    for row in table.rows:
        cells: list[str] = []
        for column, values, paper in zip_longest(table.columns, row.values, row.paper):
            cells.append(format_values(values, seeds))
            cells += ["—" if paper is None else f"{paper:g}"] if column.paper else []
        yield row.labels, cells


def _notes(table: Table) -> list[str]:
    """Returns the table's note, the paper's protocols, and the columns without any value."""
    notes = [table.note] if table.note else []
    notes += [f"The paper's {c.title}: {c.protocol}." for c in table.columns if c.protocol]
    unknown = [
        f"{column.title} ('{column.key}')"
        for index, column in enumerate(table.columns)
        if table.rows and not any(row.values[index] for row in table.rows)
    ]
    notes += [f"No finished run has the metric of: {', '.join(unknown)}."] if unknown else []
    return notes


def _markdown(table: Table, seeds: Sequence[int]) -> Iterator[str]:
    for index, (labels, cells) in enumerate(_grid(table, seeds)):
        yield "| " + " | ".join(map(_cell, (*labels, *cells))) + " |"
        if index == 0:  # the headings
            yield "|" + "---|" * len(labels) + "---:|" * len(cells)


def _html(table: Table, seeds: Sequence[int]) -> html.TextTable:
    (labels, headings), *rows = _grid(table, seeds)
    return html.TextTable(table.title, labels, headings, rows, _notes(table))


def _json(table: Table) -> dict:
    def cell(column: Column, values: Mapping[int, float], paper: float | None) -> dict[str, Any]:
        entry: dict[str, Any] = {"seeds": {str(seed): value for seed, value in values.items()}}
        if values:
            entry["mean"], entry["spread"] = mean_and_spread(values)
        if paper is not None:
            entry["paper"] = {"value": paper, "protocol": column.protocol}
        return entry

    rows = []
    for row in table.rows:
        cells = zip_longest(table.columns, row.values, row.paper)
        values = {column.title: cell(column, found, paper) for column, found, paper in cells}
        rows.append(dict(zip(table.labels, row.labels, strict=True)) | {"values": values})
    described = ({"title": c.title, "metric": c.key, "over": c.over} for c in table.columns)
    columns = [{name: text for name, text in each.items() if text} for each in described]
    return {"title": table.title, "columns": columns, "rows": rows, "note": table.note}


def _missing(entry: Mapping) -> str:
    return f"{entry['run']}, seed {entry['seed']}: {entry['why']}"


def _cell(text: str) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")
