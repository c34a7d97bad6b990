"""metrics.json: every evaluation with what it takes to compute it again, and the newest values."""

import contextlib
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from pmjax.errors import UserError
from pmjax.evals import meanings

METRICS = "metrics.json"

# Whose versions can change a number.
_PACKAGES = ("pmjax", "jax", "flax", "optax", "numpy", "scipy", "scikit-learn", "POT", "pillow")
# What evaluations must have in common for their values to stand side by side.
_SAME = ("model", "data", "sets", "seed", "num_samples")
# What each value has of its own, and what is said of all that stand side by side.
_OF_METRICS = ("extractors", "uses", "args")


def record(
    path: Path,
    values: dict[str, float],
    provenance: dict[str, Any],
    training: Sequence[dict] = (),
    *,
    say: Callable[[str], None],
) -> dict[str, float]:
    """Adds an evaluation to a file; one that cannot be read is kept beside it.

    The file's 'history' has every evaluation, with what it takes to compute it again; 'metrics' the
    newest value of each metric, of the newest model on the same data with the same seed, number of
    samples, feature extractors and arguments; beside them is the newest evaluation's provenance,
    with the extractors and arguments of all that are in 'metrics', and 'training' has the
    evaluations while the model trained.

    Returns:
      What is now in 'metrics'.
    """
    history = []
    if path.is_file():
        try:
            before = json.loads(path.read_text())
            history = before.pop("history", [])
            before.pop("training", None)
            if not all(isinstance(each, dict) for each in history):
                raise TypeError("what is no evaluation is among them")
            if not history or _own(before) != _own(history[-1]):
                history.append(before)  # of a version whose history lacked the newest
        except (ValueError, AttributeError, TypeError):
            kept = path.with_name(f"{path.name}.damaged")
            path.replace(kept)
            history = []
            say(f"{path} could not be read; it is now {kept}.")
    history.append(json.loads(json.dumps({"metrics": values, **provenance})))
    known, made = _side_by_side(history)
    content = {"metrics": known, **provenance, **made}
    content |= {"training": list(training)} if training else {}
    fresh = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh.write_text(json.dumps(content | {"history": history}, indent=2) + "\n")
    fresh.replace(path)
    return known


def _own(evaluation: dict) -> dict:
    return {k: v for k, v in evaluation.items() if k not in ("metrics", *_OF_METRICS)}


def _side_by_side(history: Sequence[dict]) -> tuple[dict[str, float], dict[str, dict]]:
    """Returns the values that compare with the newest evaluation's, and `_OF_METRICS` of them."""
    newest, kept = history[-1], []
    made = {"extractors": dict(newest.get("extractors") or {}), "uses": {}, "args": {}}
    for each in reversed(history):
        pairs = ((each.get(name, newest.get(name)), newest.get(name)) for name in _SAME)
        if any(a != b for a, b in pairs):  # earlier versions did not name the model
            continue
        values = each.get("metrics", {})
        how = {metric: _how(each, metric) for metric in map(meanings.metric_of, values)}
        how = {metric: own for metric, own in how.items() if _agree(own, made)}
        kept.append({k: v for k, v in values.items() if meanings.metric_of(k) in how})
        for own in how.values():
            made = {name: own[name] | made[name] for name in _OF_METRICS}
    known: dict[str, float] = {}
    for values in reversed(kept):
        again = [key for key in known if key in values and "/flag/" not in key]
        for key in [key for key in known if "/flag/" in key]:
            group = key.partition("flag/")[0]
            if any(told.startswith(group) for told in again):  # with its flags, if they still hold
                del known[key]
        known |= values
    made["args"] = {metric: args for metric, args in made["args"].items() if args}
    return known, {name: value for name, value in made.items() if value or name in newest}


def _how(evaluation: dict, metric: str) -> dict[str, dict]:
    """Returns what an evaluation says of one metric; of earlier versions, of all that it used."""
    extractors, uses, args = (evaluation.get(name) or {} for name in _OF_METRICS)
    used = {uses.get(metric)} if "uses" in evaluation else set(extractors)
    return {
        "extractors": {name: about for name, about in extractors.items() if name in used},
        "uses": {name: used for name, used in uses.items() if name == metric},
        "args": {metric: args.get(metric, {})},
    }


def _agree(own: dict[str, dict], made: dict[str, dict]) -> bool:
    """Tells whether a metric was made as those that are newer; protocols are in values' names."""

    def bound(value):
        return {**value, "protocols": None} if isinstance(value, dict) else value

    return all(
        bound(made[part].get(name, value)) == bound(value)
        for part in _OF_METRICS
        for name, value in own[part].items()
    )


def provenance(ctx, metrics, args: dict[str, dict[str, Any]]) -> dict:
    """Returns what it takes to compute the metrics again."""
    import jax

    from pmjax.evals.registry import extractor_of

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "evals": list(metrics),
        "seed": ctx.seed,
        "num_samples": ctx.num_samples,
        "args": {name: args[name] for name in metrics if args.get(name)},
        "uses": {
            name: extractor
            for name in metrics
            if (extractor := extractor_of(name, args.get(name, {})))
        },
        "extractors": dict(ctx.used),
        "devices": [device.device_kind for device in jax.devices()],
        "python": sys.version.split()[0],
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "revision": revision(Path(__file__).parents[1]),
    }


def revision(root: Path) -> str | None:
    """Returns a checkout's revision, '-dirty' if it was changed; else the one pip took, or None."""
    if not (root / ".git").exists():
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # no repository's
            origin = metadata.distribution("pmjax").read_text("direct_url.json")
            return json.loads(origin)["vcs_info"]["commit_id"]
        return None
    command = ["git", "-C", root, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        return done.stdout.strip()
    return None


def digest(path: Path) -> str | None:
    """Returns what a file of arrays begins with: a digest of the rest."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return file.read(32).hex()[:16]


def require_writable(path: Path) -> None:
    """Raises `UserError` unless a file can be written, before it takes minutes to find out."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f"{path.name}.part")
        probe.touch()
        probe.unlink()
        if path.is_dir():
            raise IsADirectoryError(None, "it is a directory")
    except OSError as error:
        raise UserError(f"--out={path} cannot be written ({error.strerror}).") from error
