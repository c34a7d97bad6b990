"""Finds methods, priors, nets, data sets, metrics, … by the names of their files."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pmjax import errors


class Kind(NamedTuple):
    """One kind of plugin: its package, what each file defines, and its name in messages."""

    room: str
    defines: str
    label: str


KINDS = {
    "methods": Kind("pmjax.methods", "Method", "method"),
    "priors": Kind("pmjax.priors", "Prior", "prior"),
    "nets": Kind("pmjax.nets", "Encoder", "net"),
    "datasets": Kind("pmjax.datasets", "source", "data set"),
    "metrics": Kind("pmjax.evals.metrics", "evaluate", "metric"),
    "extractors": Kind("pmjax.evals.features", "identity", "feature extractor"),
    "peers": Kind("pmjax.benchmarks.peers", "TrainingStep", "peer"),
    "reproductions": Kind("pmjax.reproductions", "REPRODUCTION", "reproduction"),
}


def names(kind: str) -> list[str]:
    """Returns the names of all plugins of a kind: the files of its package that define one."""
    return sorted(_sources(kind))


def summaries(kind: str) -> dict[str, str]:
    """Returns {name: first line of the file's docstring} of all plugins of a kind."""
    return {
        name: (ast.get_docstring(ast.parse(source)) or "").partition("\n")[0]
        for name, source in sorted(_sources(kind).items())
    }


def _sources(kind: str) -> dict[str, str]:
    room, defines, _ = KINDS[kind]
    pattern = re.compile(rf"^(?:def|class) {defines}\b|^{defines}\b.*=", re.MULTILINE)
    sources = {
        module.name: (Path(folder) / f"{module.name}.py").read_text(encoding="utf-8")
        for folder in importlib.import_module(room).__path__
        for module in pkgutil.iter_modules([folder])
    }
    return {name: source for name, source in sources.items() if pattern.search(source)}


def load(kind: str, name: str) -> ModuleType:
    """Imports the plugin NAME of a kind.

    Raises:
      UserError: if there is none; the message has the nearest name.
    """
    offered = names(kind)
    if name not in offered:
        raise errors.unknown(KINDS[kind].label, name, offered)
    return importlib.import_module(f"{KINDS[kind].room}.{name}")
