"""HTML pages: report.html of a run and of a reproduction, each one file that loads nothing else."""

import base64
import dataclasses
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import markupsafe
from PIL import Image

from pmjax import errors
from pmjax.config import flat
from pmjax.reporting import history
from pmjax.reporting.images import Figure
from pmjax.storage import atomic

FILE = "report.html"
# Keys of the config that the head of a run's report shows.
HEAD = ("data.name", "method", "prior", "latent_dim", "data.batch_size", "seed")


@dataclasses.dataclass(frozen=True)
class MetricRow:
    """A value of a metric: its name, number and spread, and a note on what it means."""

    name: str
    value: float
    spread: float | None = None
    note: str = ""
    bar: bool = True  # whether its bar compares with the others' in a table with bars


@dataclasses.dataclass(frozen=True)
class MetricTable:
    """The values of a metric: what it measures, and whether the rows have bars to compare."""

    title: str
    meaning: str
    rows: Sequence[MetricRow]
    bars: bool = False

    def lengths(self) -> Iterator[tuple[MetricRow, float]]:
        """Yields each row and the length of its bar in percent of the longest."""
        top = max((row.value for row in self.rows if row.bar), default=0.0)
        for row in self.rows:
            yield row, 100 * max(row.value, 0.0) / top if row.bar and top > 0 else 0.0


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table of text: columns of labels, then columns of numbers, and notes below."""

    title: str
    labels: Sequence[str]  # headings of the first columns
    numbers: Sequence[str]  # headings of the others
    rows: Sequence[tuple[Sequence[str], Sequence[str]]]
    notes: Sequence[str] = ()


@dataclasses.dataclass(frozen=True)
class Page:
    """What a page shows, from top to bottom; empty parts are left out. All text is escaped."""

    title: str
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    summary: str = ""
    command: str = ""
    tables: Sequence[TextTable] = ()
    missing: Sequence[str] = ()
    metrics: Sequence[MetricTable] = ()
    figures: Sequence[Figure] = ()
    curves: Mapping[str, Mapping[str, list[tuple[int, float]]]] = dataclasses.field(
        default_factory=dict
    )  # {heading: {name: [(step, value), …]}}
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_report(
    workdir: Path,
    *,
    title: str,
    config: Mapping[str, Any],
    tables: Sequence[MetricTable],
    figures: Sequence[Figure],
    missing: Sequence[str] = (),
) -> Path:
    """Writes report.html of a run, with the curves of history.jsonl; returns its path.

    `missing` says what is left out, and why.
    """
    rows = history.read(workdir)
    values = flat(config)
    facts = {name.removesuffix(".name"): values[name] for name in HEAD if name in values}
    facts |= {row["stage"]: f"{row['step']:,} steps" for row in rows}  # the last row's remains
    page = Page(
        title,
        facts,
        missing=missing,
        metrics=tables,
        figures=figures,
        curves=history.curves(rows),
        config={name: json.dumps(value, default=str) for name, value in values.items()},
    )
    return write(workdir / FILE, page)


def write(path: Path, page: Page) -> Path:
    """Writes a page; returns its path."""
    from pmjax.reporting import plots  # loads matplotlib

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=lambda value: f"{value:.4g}",
        spread=lambda value: f"{value:.2g}" if value < 99.5 else f"{value:.0f}",
        png=_png,
        svg=lambda values: markupsafe.Markup(plots.curves(values)),  # matplotlib escapes its text
    )
    template = environment.get_template("report.html.jinja")
    atomic.write(path, errors.printable(template.render(page=page)))
    return path


def _png(figure: Figure) -> dict[str, str]:
    """Returns a figure's picture as an address, and the class that its shape gets."""
    content = Path(figure.path).read_bytes()
    width, height = Image.open(io.BytesIO(content)).size
    return {
        "shape": "wide" if width > 1.6 * height else "square",
        "source": f"data:image/png;base64,{base64.b64encode(content).decode()}",
    }
