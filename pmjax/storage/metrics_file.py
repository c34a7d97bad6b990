"""metrics.json: every evaluation, with what it was computed from, and the current values."""

import contextlib
import json
import logging
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pmjax.errors import UserError

log = logging.getLogger(__name__)
METRICS = "metrics.json"

# What evaluations must have in common for their values to compare.
_SAME = ("model", "data", "sets", "seed", "num_samples")
# What must agree for each metric.
_OF_METRICS = ("extractors", "uses", "args")


def record(
    path: Path,
    values: dict[str, float],
    provenance: dict[str, Any],
    training: Sequence[dict] = (),
    *,
    metric_of: Callable[[str], str],
) -> dict[str, float]:
    """Adds an evaluation to a file; an unreadable file is renamed first.

    The file's 'history' has every evaluation with its provenance. 'metrics' has the newest value of
    each metric, of the newest model on the same data with the same seed, number of samples, feature
    extractors and arguments. The other keys are the newest evaluation's provenance, with the
    extractors and arguments of all values in 'metrics', and 'training', the evaluations during
    training, as {stage, step, metrics}.

    `metric_of` returns the metric's name in this version, from a value's key or a metric's name.
    """
    history = []
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            history = before.pop("history", [])
            before.pop("training", None)
            if not all(isinstance(each, dict) for each in history):
                raise TypeError("its history has other items than evaluations")
            if not history or _own(before) != _own(history[-1]):
                history.append(before)  # early versions did not add the newest to the history
        except (ValueError, AttributeError, TypeError):
            damaged = path.with_name(f"{path.name}.damaged")
            path.replace(damaged)
            history = []
            log.warning("%s could not be read; it is now %s.", path, damaged)
    history.append(json.loads(json.dumps({"metrics": values, **provenance})))
    known, made = _comparable(history, metric_of)
    content = {"metrics": known, **provenance, **made}
    content |= {"training": list(training)} if training else {}
    fresh = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps(content | {"history": history}, indent=2) + "\n")
    fresh.replace(path)
    return known


def _own(evaluation: dict) -> dict:
    return {k: v for k, v in evaluation.items() if k not in ("metrics", *_OF_METRICS)}


def _comparable(
    history: Sequence[dict], metric_of: Callable[[str], str]
) -> tuple[dict[str, float], dict[str, dict]]:
    """Returns the values that compare with the newest evaluation's, and `_OF_METRICS` of them."""
    newest, chosen = history[-1], []
    made = {"extractors": dict(newest.get("extractors") or {}), "uses": {}, "args": {}}
    for each in reversed(history):
        pairs = ((each.get(name, newest.get(name)), newest.get(name)) for name in _SAME)
        if any(a != b for a, b in pairs):  # early versions did not name the model
            continue
        values = each.get("metrics", {})
        metrics = {key: metric_of(key) for key in values}
        how = {metric: _how(each, metric, metric_of) for metric in metrics.values()}
        how = {metric: own for metric, own in how.items() if _agree(own, made)}
        chosen.append({key: value for key, value in values.items() if metrics[key] in how})
        for own in how.values():
            made = {name: own[name] | made[name] for name in _OF_METRICS}
    known: dict[str, float] = {}
    for values in reversed(chosen):
        again = [key for key in known if key in values and "/flag/" not in key]
        for key in [key for key in known if "/flag/" in key]:
            group = key.partition("flag/")[0]
            if any(key.startswith(group) for key in again):  # which has its own flags
                del known[key]
        known |= values
    made["args"] = {metric: args for metric, args in made["args"].items() if args}
    return known, {name: value for name, value in made.items() if value or name in newest}


def _how(evaluation: dict, metric: str, metric_of: Callable[[str], str]) -> dict[str, dict]:
    """Returns `_OF_METRICS` of one metric; in early versions, of all that an evaluation used."""
    extractors, uses, args = (evaluation.get(name) or {} for name in _OF_METRICS)
    uses, args = ({metric_of(k): v for k, v in each.items()} for each in (uses, args))
    used = {uses.get(metric)} if "uses" in evaluation else set(extractors)
    return {
        "extractors": {name: about for name, about in extractors.items() if name in used},
        "uses": {name: used for name, used in uses.items() if name == metric},
        "args": {metric: args.get(metric, {})},
    }


def _agree(own: dict[str, dict], made: dict[str, dict]) -> bool:
    """Returns whether a metric was computed like newer ones; keys name protocols already."""

    def bound(value: Any) -> Any:
        return {**value, "protocols": None} if isinstance(value, Mapping) else value

    return all(
        bound(made[part].get(name, value)) == bound(value)
        for part in _OF_METRICS
        for name, value in own[part].items()
    )


def revision(root: Path) -> str | None:
    """Returns a checkout's revision, with '-dirty' if it is changed; or pip's; or None."""
    if not (root / ".git").exists():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # not from a repository
            origin = metadata.distribution("pmjax").read_text("direct_url.json")
            return json.loads(origin or "")["vcs_info"]["commit_id"]
        return None
    command = "git describe --always --dirty --abbrev=40 --exclude=*".split()
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(
            command, cwd=root, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout.strip()
    return None


def digest(path: Path) -> str | None:
    """Returns the digest that a file of arrays begins with."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(32).hex()[:16]


def require_writable(path: Path) -> None:
    """Raises `UserError` unless a file can be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.part")
        probe.touch()
        probe.unlink()
        if path.exists() and not path.is_file():  # `record` would replace a device
            raise OSError(None, "it is not a regular file")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written ({error.strerror}).") from error
