"""Shared by the commands: arguments, process set-up, and errors without a traceback."""

import argparse
import contextlib
import dataclasses
import inspect
import io
import logging
import os
import sys
import tempfile
import textwrap
import tokenize
import warnings
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pmjax import config, errors, paths, plugins, schema
from pmjax.errors import UserError
from pmjax.evals import registry
from pmjax.reporting import console
from pmjax.storage import resource_errors

log = logging.getLogger(__name__)


def run(command: Callable[[], None]) -> None:
    """Runs a command; a `UserError`, a full disk or too little memory ends it with status 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax also logs errors that it raises
    sys.unraisablehook = _unraisable
    console.setup()
    try:
        with resource_errors.as_user_errors(), console.steady_output():
            command()
    except UserError as error:
        print(f"\nError: {errors.printable(str(error))}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows errors that nobody can catch, except those of TensorStore after a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns parsed arguments, and --config.name=value or --config.name value as {name: value}.

    With --help, prints the help, and describes the config that --config names.
    """
    for variable in paths.VARIABLES:
        paths.refuse_url(os.environ.get(variable, ""))
    parser.allow_abbrev = False  # a flag added later could make one ambiguous
    words = [word for word in sys.argv[1:] if word not in ("-h", "--help")]
    if wants_help := len(words) < len(sys.argv[1:]):
        for action in parser._actions:
            action.required = False
    known, rest = parser.parse_known_args(words)
    overrides, more = {}, iter(rest)
    options = [option for action in parser._actions for option in action.option_strings]
    for word in more:
        name, equals, value = word.partition("=")
        if not name.startswith("--config."):
            raise errors.unknown("argument", word, [*options, "--config.NAME=VALUE"])
        text = value if equals else next(more, None)
        if text is None:
            raise UserError(f"{name} needs a value: {name}=VALUE.")
        overrides[name.removeprefix("--config.")] = text
    if wants_help:
        print(parser.format_help())
        if reference := getattr(known, "config", None):
            print(describe(reference, overrides))
        elif "--config" in options:
            print("To list all keys of a config: --config=FILE --help")
        raise SystemExit(0)
    return known, overrides


def describe(reference: str, overrides: Mapping[str, str]) -> str:
    """Returns a text that lists all keys of a config with their values, and all plugins."""
    settings = config.load(reference, overrides)
    values = config.flat(settings)
    parts = [
        f"Keys of {reference}, each with its value; --config.NAME=VALUE changes one. Keys marked * "
        "may change between two runs of a workdir, the others decide what is trained."
    ]
    for section, keys in schema.SECTIONS.items():
        rows = []
        for name, key in keys.items():
            valid = f" [{key.valid()}]" if key.valid() else ""
            rows.append((f"{' *'[key.free]} {name} = {_shown(values[name])}", key.comment + valid))
            if key.args:
                cls = config.plugin_class(name, settings[name])
                comments = _field_comments(cls)
                for argument in (f"{key.args}.{n}" for n in config.arguments(cls)):
                    comment = comments.get(argument.partition(".")[2], "")
                    rows.append((f"  {argument} = {_shown(values[argument])}", comment))
        parts.append(_table(section, rows))
    rows = [
        (f"* {n} = {_shown(v)}", "") for n, v in values.items() if n.startswith(schema.METRIC_ARGS)
    ]
    rows.append((f"* {schema.METRIC_ARGS}METRIC.NAME", "an argument of a metric"))
    parts.append(_table("Arguments of metrics", rows))
    for kind, title in _OFFERED.items():
        rows = [(f"  {name}", text) for name, text in plugins.summaries(kind).items()]
        if kind == "metrics":
            rows.append(
                (
                    "  METRIC_EXTRACTOR",
                    "METRIC on the features of EXTRACTOR, such as kd_efficientnet_lite0",
                )
            )
            rows += [
                (f"  {name}", f"another name of {'_'.join(filter(None, alias[:2]))}")
                for name, alias in registry.ALIASES.items()
                if name != alias.file  # such as prdc, which is listed already
            ]
        parts.append(_table(f"{title}; files of {plugins.KINDS[kind].room}", rows, left=24))
    return "\n\n".join([textwrap.fill(parts[0], _WIDTH), *parts[1:]])


_WIDTH = 100
_OFFERED = {
    "methods": "Methods, for config.method",
    "priors": "Priors, for config.prior and eval.baselines",
    "nets": "Families of networks, for config.nets",
    "datasets": "Data sets, for config.data.name",
    "metrics": "Metrics, for config.eval.metrics, eval.during and eval.stage2_during",
    "extractors": "Feature extractors of metrics",
}


def _table(title: str, rows: Iterable[tuple[str, str]], left: int = 40) -> str:
    """Returns a title and rows of two columns, of which the second is wrapped."""
    lines = [title]
    for name, text in rows:
        wrapped = textwrap.wrap(text, _WIDTH - left, break_on_hyphens=False) or [""]
        if len(name) > left - 2:  # it has a line of its own
            lines.append(name)
            name = ""
        lines.append(f"{name:{left}}{wrapped[0]}".rstrip())
        lines += [" " * left + line for line in wrapped[1:]]
    return "\n".join(line for line in lines if line)


def _shown(value: Any) -> str:
    """Returns a value as the command line takes it."""
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value) or "''"


def _field_comments(cls: type) -> dict[str, str]:
    """Returns {field: the comment on its line in the source} of a dataclass and its bases."""
    found = {}
    for base in filter(dataclasses.is_dataclass, reversed(cls.__mro__)):
        with contextlib.suppress(OSError):  # a class that is not in a file
            source = io.StringIO(inspect.getsource(base))
            for token in tokenize.generate_tokens(source.readline):
                if token.type == tokenize.COMMENT:
                    found[token.line.partition(":")[0].strip()] = token.string.lstrip("# ")
    return found


def cache_compilations() -> None:
    """Lets JAX cache compiled programs in a private directory, so that the next start is fast.

    JAX_COMPILATION_CACHE_DIR, or jax.config, names another directory. Where neither can be written,
    new programs are not cached.
    """
    import jax  # takes half a second, which commands that reject their arguments save

    own = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    variable = "JAX_COMPILATION_CACHE_DIR" if own else "PMJAX_CACHE"
    if own and "://" in own:
        return
    try:
        path = paths.local(own, variable=variable) if own else paths.cache() / "jax"
        os.makedirs(path, mode=0o777 if own else 0o700, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except (OSError, UserError) as error:
        hint = "" if isinstance(error, UserError) else f". Set {variable} to another directory."
        log.warning("Compiled programs are not cached, so starts take longer: %s%s", error, hint)
        warnings.filterwarnings("ignore", message="Error .* persistent compilation cache entry")
        if own and own.startswith("~"):
            jax.config.update("jax_compilation_cache_dir", None)  # else JAX creates the directory ~
        return
    if not own:
        _delete_truncated(path)
    jax.config.update("jax_compilation_cache_dir", str(path))


def _delete_truncated(folder: Path) -> None:
    """Deletes entries that a kill or a full disk has truncated; JAX keeps them and warns each time.

    Checks entries newer than the last start, and only those compressed by zlib: JAX uses zstd where
    it is installed.
    """
    mark = folder / ".checked"
    try:
        since = mark.stat().st_mtime_ns if mark.exists() else 0
        mark.touch()  # first, so that the next start checks what another process is writing now
    except OSError:  # a read-only directory
        return
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process has deleted it
            content = entry.read_bytes() if entry.stat().st_mtime_ns >= since else b"old"
            try:
                if content[:1] in (b"", b"x"):
                    zlib.decompress(content)
            except zlib.error:
                entry.unlink()
