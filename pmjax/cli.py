"""Shared by the commands: arguments, process set-up, and errors without a traceback."""

import argparse
import contextlib
import logging
import os
import sys
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

from pmjax import errors
from pmjax.errors import UserError
from pmjax.reporting import console
from pmjax.storage import resource_errors


def run(command: Callable[[], None]) -> None:
    """Runs a command; a `UserError`, a full disk or too little memory ends it with status 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax also logs errors that it raises
    sys.unraisablehook = _unraisable
    console.setup()
    try:
        with resource_errors.as_user_errors():
            command()
    except UserError as error:
        print(f"\nError: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Shows errors that nobody can catch, except those of TensorStore after a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, str]]:
    """Returns parsed arguments, and --config.name=value or --config.name value as {name: value}."""
    known, rest = parser.parse_known_args()
    overrides, words = {}, iter(rest)
    options = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--config."):
            raise errors.unknown("argument", word, [*options, "--config.NAME=VALUE"])
        text = value if equals else next(words, None)
        if text is None:
            raise UserError(f"{name} needs a value: {name}=VALUE.")
        overrides[name.removeprefix("--config.")] = text
    return known, overrides


def cache_compilations() -> None:
    """Lets JAX cache compiled programs in a private directory, so that the next start is fast."""
    import jax  # takes half a second, which commands that reject their arguments save

    base = os.environ.get("PMJAX_CACHE") or os.path.expanduser("~/.cache/pmjax")
    path = os.path.join(base, "jax")
    os.makedirs(path, mode=0o700, exist_ok=True)
    _delete_truncated(Path(path))
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


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
