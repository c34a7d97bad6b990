"""history.jsonl: every loss and metric of a run, one row per line."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from pmjax.storage import atomic

FILE = "history.jsonl"
EVAL = "eval/"  # prefix of the values of evaluations during training

Row = dict[str, Any]  # {"stage": …, "step": …, "values": {name: number, None if not finite}}


class History:
    """Writes the rows of a workdir; a resumed run continues the file."""

    def __init__(self, workdir: Path):
        self._path = workdir / FILE
        self._file = self._reopen(lambda row: True)

    def resume(self, stage: str, step: int) -> None:
        """Drops the rows of a stage after this step: a killed run wrote them."""
        self.close()
        self._file = self._reopen(lambda row: row["stage"] != stage or row["step"] <= step)

    def scalars(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Appends a row, which is on disk when this returns."""
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"stage": stage, "step": step, "values": finite}) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _reopen(self, wanted: Callable[[Row], bool]) -> TextIO:
        if self._path.exists():
            rows = filter(wanted, read(self._path.parent))
            atomic.write(self._path, "".join(json.dumps(row) + "\n" for row in rows))
        return self._path.open("a", encoding="utf-8")


def read(workdir: Path) -> list[Row]:
    """Returns the rows {stage, step, values} of a workdir, without an incomplete last line."""
    path = workdir / FILE
    rows = []
    for line in path.read_bytes().splitlines() if path.exists() else []:
        with suppress(ValueError):  # cut by a kill, perhaps inside a UTF-8 character
            rows.append(json.loads(line))
    return rows


def evaluations(workdir: Path) -> list[Row]:
    """Returns the rows {stage, step, metrics} of the evaluations during training."""
    rows = []
    for row in read(workdir):
        values = row.pop("values").items()
        if metrics := {n.removeprefix(EVAL): v for n, v in values if n.startswith(EVAL)}:
            rows.append(row | {"metrics": metrics})
    return rows


def curves(rows: list[Row]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Returns {heading: {name: [(step, value), …]}} of finite values: losses, and evaluations.

    The spreads and flags of an evaluation's values have no curves.
    """
    found: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for row in rows:
        for name, value in row["values"].items():
            heading = row["stage"]
            if name.startswith(EVAL):
                name, heading = name.removeprefix(EVAL), f"{heading}, evaluations"
                if name.endswith("/spread") or "/flag/" in name:
                    continue
            if value is not None:
                curve = found.setdefault(heading, {}).setdefault(name, [])
                curve.append((row["step"], value))
    return found
