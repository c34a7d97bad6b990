"""Values as people read them: the lines of a command and the tables of a report."""

from collections.abc import Mapping

from pmjax.evals import registry
from pmjax.evals.base import FLAGS, SETS, Value
from pmjax.reporting.html import MetricRow, MetricTable


def plain(values: Mapping[str, float]) -> dict[str, float]:
    """Returns values without their spreads and flags."""
    return {k: v for k, v in values.items() if not k.endswith("/spread") and "/flag/" not in k}


def shown(values: Mapping[str, float], digits: int) -> dict[str, str]:
    """Returns values as text, each with its spread to two digits."""
    texts = {}
    for key, value in values.items():
        if not key.endswith("/spread"):
            texts[key] = f"{value:.{digits}g}"
            spread = values.get(f"{key}/spread")
            if spread is not None:
                texts[key] += f" ± {spread:.2g}" if spread < 99.5 else f" ± {spread:.0f}"
    return texts


def listing(values: Mapping[str, float]) -> str:
    """Returns values as aligned lines, for a command to print."""
    texts = shown(values, 5)
    width = max(map(len, texts), default=0)
    return "\n".join(f"{name:{width}}  {value}" for name, value in texts.items())


def tables(values: Mapping[str, float]) -> list[MetricTable]:
    """Returns the report's tables of values, with the meanings that their metrics declare."""
    groups: dict[str, list[str]] = {}
    for key in values:
        group, _, name = key.rpartition("/")
        if name != "spread":
            groups.setdefault(group.removesuffix("/flag"), []).append(key)
    return [_table(group, keys, values) for group, keys in groups.items()]


def _table(group: str, keys: list[str], values: Mapping[str, float]) -> MetricTable:
    table, details = registry.table_of(group)
    declared = table.values if table else {}
    rows = []
    for key in keys:
        name = key.removeprefix(f"{group}/")
        flag, _, last = name.rpartition("/")
        note = (
            FLAGS.get(last, "") if flag else declared.get(name, Value(SETS.get(name, ""))).meaning
        )
        spread = values.get(f"{key}/spread")
        bar = not flag and name not in declared  # such as a ratio, which is no distance
        rows.append(MetricRow(name, float(values[key]), spread, note, bar=bar))
    if table is None:
        return MetricTable(group or "Other", "", rows)
    return MetricTable(table.title.format(details), table.meaning, rows, bars=table.bars)
