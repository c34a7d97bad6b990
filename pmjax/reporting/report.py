"""What a run says: TensorBoard events, history.jsonl, the status line, image grids, report.html.

The only import of tensorboardX.
"""

import base64
import collections
import contextlib
import dataclasses
import html
import io
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from pmjax.errors import UserError
from pmjax.evals import meanings
from pmjax.evals.meanings import BARS, GROUPS, MEANINGS
from pmjax.storage import resource_errors

WINDOW = 30.0  # seconds over which the rate is taken
LIVE_EVERY, PLAIN_EVERY = 0.1, 10.0  # seconds between status lines, on a terminal and elsewhere
MARGIN = 2  # pixels around and between the images of a grid


@dataclasses.dataclass(frozen=True)
class Figure:
    """A picture of the report: its title, one sentence on what it shows, and the PNG's path."""

    title: str
    caption: str
    path: Path


class Report:
    """The one writer of a workdir: events/STAGE/ for TensorBoard, history.jsonl, status on stderr.

    It goes on where an earlier run ended; `resume` drops what that run wrote too much.
    """

    def __init__(self, workdir, *, stream=None, clock=time.monotonic):
        self._workdir = Path(workdir)
        self._resumed_at: dict[str, int] = {}
        self._stream = sys.stderr if stream is None else stream
        self._clock = clock
        self._live = self._stream.isatty()
        self._line = ""  # what stands on the terminal's last line
        self._drawn = -math.inf
        self._stage, self._marks = None, collections.deque()
        self._writers: dict[str, EventsWriter] = {}
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._history = _reopen(self._workdir / "history.jsonl", lambda row: True)
        except OSError as error:
            raise UserError(
                f"Cannot write in workdir '{workdir}': {error.strerror}. "
                "Choose another with --workdir, or change its permissions."
            ) from error

    def resume(self, stage: str, step: int) -> None:
        """Drops what a killed run wrote of a stage beyond the step of its last checkpoint."""
        self._resumed_at[stage] = step
        self._history.close()
        self._history = _reopen(
            self._workdir / "history.jsonl",
            lambda row: row["stage"] != stage or row["step"] <= step,
        )

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends one row to history.jsonl and to the stage's events (non-finite: null, as is).

        Both are on disk when it returns, so that a full disk is an error here and now.
        """
        values = {name: float(value) for name, value in values.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        row = {"stage": stage, "step": int(step), "values": finite}
        with resource_errors.disk(
            "losses and metrics", self._workdir, kept="Checkpoints are kept."
        ):
            self._history.write(json.dumps(row) + "\n")
            self._history.flush()
            if stage not in self._writers:
                self._writers[stage] = self._open_events(stage)
            for name, value in values.items():
                event = Event(wall_time=time.time(), step=int(step), summary=scalar(name, value))
                self._writers[stage].write_event(event)
            self._writers[stage].flush()

    def status(self, stage: str, step: int, steps: int, values: Mapping[str, float]) -> None:
        """Shows step of steps, steps/s over the last 30 s, ETA and losses.

        A stage's first call starts its clock, so call it when the first (compiling) dispatch is
        over. On a terminal the line redraws itself; elsewhere a plain line comes every 10 s.
        """
        now = self._clock()
        if stage != self._stage or step < self._marks[-1][1]:
            self._stage = stage
            self._marks.clear()
        self._marks.append((now, step))
        while len(self._marks) > 2 and now - self._marks[1][0] >= WINDOW:
            self._marks.popleft()
        if now - self._drawn < (LIVE_EVERY if self._live else PLAIN_EVERY) and not (
            self._live and step >= steps
        ):
            return
        self._drawn = now
        parts = [stage, f"{step}/{steps}", f"{100 * step / max(steps, 1):.0f}%"]
        start, first = self._marks[0]
        if step > first and now > start:
            rate = (step - first) / (now - start)
            parts += [f"{rate:.3g} steps/s" if rate < 100 else f"{rate:.0f} steps/s"]
            parts += [f"ETA {duration((steps - step) / rate)}"]
        parts += [f"{name.removeprefix('loss/')} {float(v):.4g}" for name, v in values.items()]
        if self._live:
            self._redraw(fit_line(parts, terminal_columns(self._stream) - 1))
        else:
            self._write("  ".join(parts) + "\n")

    def say(self, message: str) -> None:
        """Prints whole lines, and puts the status line back below them."""
        line = self._line
        self._redraw("")
        self._write(f"{message}\n")
        self._redraw(line)

    def close(self) -> None:
        """Ends the status line and the files; a second call does nothing."""
        if self._line:
            self._write("\n")
            self._line = ""
        for file in (self._history, *self._writers.values()):
            with contextlib.suppress(OSError):  # of a full disk, which has been told
                file.close()
        self._writers.clear()

    def _open_events(self, stage):
        folder = self._workdir / "events" / stage
        # tensorboardX names files by the second; the suffix keeps a quick restart from
        # overwriting. TensorBoard itself drops what an older file holds from purge_step on.
        older = len(list(folder.glob("*.tfevents.*")))
        folder.mkdir(parents=True, exist_ok=True)
        # Its SummaryWriter writes in a thread, whose death on a full disk would hang the training.
        writer = EventsWriter(str(folder / "events"), f".{older}")
        if older:
            start = SessionLog(status=SessionLog.START)
            purge_step = self._resumed_at.get(stage, -1) + 1
            writer.write_event(Event(step=purge_step, session_log=start))
        return writer

    def _redraw(self, line):
        if line or self._line:
            self._write("\r" + line.ljust(len(self._line)) + ("" if line else "\r"))
        self._line = line

    def _write(self, text):
        self._stream.write(text)
        self._stream.flush()


def history(workdir) -> list[dict]:
    """Returns the rows {stage, step, values} of history.jsonl, without a torn last line."""
    path = Path(workdir) / "history.jsonl"
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:  # a run killed while it wrote; half a UTF-8 character counts too
            continue
    return rows


def _reopen(path, keep):
    kept = [row for row in history(path.parent) if keep(row)]
    if path.exists():
        write_whole(path, "".join(json.dumps(row) + "\n" for row in kept))
    return path.open("a", encoding="utf-8")


def write_whole(path, text):
    """Writes a text file under its name only when it is whole."""
    fresh = path.with_suffix(".tmp")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)


def terminal_columns(stream):
    """Returns the width of the terminal behind a stream."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def fit_line(parts, width):
    """Joins as many leading parts as fit, so that no number is cut in two."""
    line = ""
    for part in parts:
        longer = f"{line}  {part}" if line else part
        if len(longer) > width:
            return line or longer[: max(width, 0)]
        line = longer
    return line


def duration(seconds):
    """Returns seconds as words for people, such as 1h05m."""
    minutes, seconds = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24}d{hours % 24:02d}h"
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{seconds:02d}s" if minutes else f"{seconds}s"


def grid(images: np.ndarray, columns: int | None = None) -> np.ndarray:
    """Lays uint8 images [N,H,W,C], C in {1, 3}, row by row on white: uint8 [H',W',3].

    Small images grow by whole factors to about 56 pixels of width, so each pixel stays a square;
    `columns` defaults to the square root of N, rounded up.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise ValueError(f"grid needs uint8 [N,H,W,1 or 3], got {images.dtype} {images.shape}")
    scale = max(1, round(56 / images.shape[2]))
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    num, height, width, _ = images.shape
    columns = columns or max(1, math.ceil(math.sqrt(num)))
    rows = -(-num // columns)
    step_y, step_x = height + MARGIN, width + MARGIN
    canvas = np.full((rows * step_y + MARGIN, columns * step_x + MARGIN, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = MARGIN + i // columns * step_y, MARGIN + i % columns * step_x
        canvas[y : y + height, x : x + width] = image
    return canvas


def save_png(path, image: np.ndarray) -> None:
    """Writes a uint8 image [H,W,3], making its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, format="PNG", optimize=True)


STYLE = """
:root { color-scheme: light dark; --back: #fbfbfa; --card: #fff; --ink: #1f2328; --soft: #667;
  --line: #e3e4e6; --mark: #3f6fd8; }
@media (prefers-color-scheme: dark) { :root { --back: #14161a; --card: #1c1f24; --ink: #e4e6ea;
  --soft: #99a; --line: #31353c; --mark: #7aa2ff; } }
* { box-sizing: border-box; overflow-wrap: anywhere; }
body { margin: 0 auto; padding: 2.5rem 1.5rem 4rem; max-width: 76rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { margin: 0 0 1rem; font-size: 1.9rem; line-height: 1.2; }
h2 { margin: 2.8rem 0 1rem; font-size: 1.3rem; } h3 { margin: 0 0 .15rem; font-size: 1rem; }
p { margin: 0 0 .8rem; max-width: 60rem; font-size: .9rem; } p, dt, small { color: var(--soft); }
dl { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; margin: 0; }
dt { font-size: .8rem; } dd { margin: 0; font-weight: 600; }
section, figure, details { margin: 0 0 1rem; padding: 1rem 1.2rem; background: var(--card);
  border: 1px solid var(--line); border-radius: .6rem; min-width: 0; }
.tables { columns: 2 30rem; column-gap: 1rem; }
.tables section { break-inside: avoid; }
.figures { display: flex; flex-wrap: wrap; gap: 0 1rem; }
figure { flex: 1 1 20rem; max-width: 34rem; } figure.wide { flex-basis: 100%; max-width: none; }
img, svg { display: block; width: 100%; height: auto; border-radius: .3rem; }
svg text { font-family: inherit !important; }
table { width: 100%; border-collapse: collapse; font-size: .92rem; }
td { padding: .3rem .8rem .3rem 0; border-top: 1px solid var(--line); vertical-align: top; }
td.number { text-align: right; font-weight: 600; font-variant-numeric: tabular-nums;
  white-space: nowrap; overflow-wrap: normal; padding-right: 0; }
td.bar { width: 34%; vertical-align: middle; }
td.bar i { display: block; height: .6rem; border-radius: .2rem; background: var(--mark); }
small { display: block; line-height: 1.3; } summary { cursor: pointer; }
details table { margin-top: .8rem; font-family: ui-monospace, monospace; font-size: .82rem; }
"""
# The policy lets a browser load nothing from anywhere, whatever the page holds.
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title><style>{style}</style></head>
<body><h1>{title}</h1>{body}</body></html>
"""


def write_html(
    workdir, *, title: str, config: Mapping, metrics: Mapping[str, float], figures: Sequence[Figure]
) -> Path:
    """Writes workdir/report.html, one file without scripts or outside resources; returns its path.

    The loss curves come from history.jsonl; all that is given is escaped.
    """
    from pmjax.evals.figures import (
        curves,  # matplotlib costs half a second that other commands save
    )

    rows = history(workdir)
    parts = [_summary(config, rows)]
    if metrics:
        parts += ["<h2>Metrics</h2>", _tables(metrics)]
    if figures:
        parts += ["<h2>Pictures</h2><div class='figures'>", *map(figure_html, figures), "</div>"]
    if rows:
        parts += ["<h2>Training</h2>"]
        parts += [
            f"<section><h3>{escape(name)}</h3>{svg}</section>" for name, svg in curves(_apart(rows))
        ]
    if config:
        knobs = (
            f"<tr><td>{escape(name)}</td><td>{escape(json.dumps(value, default=str))}</td></tr>"
            for name, value in _flat(config)
        )
        parts += ["<h2>Config</h2><details><summary>every knob of this run</summary><table>"]
        parts += [*knobs, "</table></details>"]
    page = PAGE.format(title=escape(title), style=STYLE, body="".join(parts))
    path = Path(workdir) / "report.html"
    write_whole(path, page)
    return path


def escape(value):
    """Returns a value as HTML text."""
    return html.escape(str(value))


def _flat(config, prefix=""):
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _summary(config, rows):
    flat = dict(_flat(config))
    names = ("data.name", "method", "prior", "latent_dim", "data.batch_size", "seed")
    facts = [(name.removesuffix(".name"), flat[name]) for name in names if name in flat]
    last = {row["stage"]: row["step"] for row in rows}
    facts += [(stage, f"{step:,} steps") for stage, step in last.items()]
    cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts)
    return f"<dl>{''.join(cells)}</dl>"


def _apart(rows):
    """Yields the rows, with values of evaluations as a stage of their own."""
    for row in rows:
        values = {k.removeprefix("eval/"): v for k, v in row["values"].items() if k[:5] == "eval/"}
        if values:
            row = {**row, "stage": f"{row['stage']}, evaluations", "values": meanings.plain(values)}
        yield row


def _tables(metrics):
    groups: dict[str, dict[str, float]] = {}
    for name, value in metrics.items():
        group, _, rest = name.rpartition("/")
        if group.endswith("/flag"):
            group, rest = group.removesuffix("/flag"), f"flag/{rest}"
        if rest != "spread":
            groups.setdefault(group, {})[rest] = float(value)
    tables = "".join(_table(*item, metrics) for item in groups.items())
    return f"<div class='tables'>{tables}</div>"


def _table(group, values, metrics):
    kind, rest = meanings.kind(group)
    heading, meaning = GROUPS.get(kind, ("{}", ""))
    heading = heading.format(rest if group else "Other")
    bars = kind.partition("/")[0] in BARS  # whose lengths say something together
    alone = ("ratio", *(name for name in values if name.startswith("flag/")))
    top = max((value for name, value in values.items() if name not in alone), default=0)
    lines = ""
    for name, value in values.items():
        note = MEANINGS.get(f"{group}/{name}", MEANINGS.get(name, ""))
        small = f"<small>{note}</small>" if note else ""
        length = 100 * max(value, 0) / top if top > 0 and name not in alone else 0
        bar = f"<td class='bar'><i style='width:{length:.1f}%'></i></td>" if bars else ""
        spread = metrics.get(f"{group}/{name}/spread")
        number = f"{value:.4g}" + ("" if spread is None else f" ± {meanings.rounded(spread)}")
        lines += f"<tr><td>{escape(name)}{small}</td>{bar}<td class='number'>{number}</td></tr>"
    meaning = f"<p>{escape(meaning)}</p>" if meaning else ""
    return f"<section><h3>{escape(heading)}</h3>{meaning}<table>{lines}</table></section>"


def figure_html(figure):
    """Returns a figure with its caption, its picture inside, as HTML."""
    content = Path(figure.path).read_bytes()
    width, height = Image.open(io.BytesIO(content)).size
    kind = "wide" if width > 1.6 * height else "square"
    source = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    title = escape(figure.title)
    return (
        f"<figure class='{kind}'><figcaption><h3>{title}</h3><p>{escape(figure.caption)}</p>"
        f"</figcaption><img alt='{title}' src='{source}'></figure>"
    )
