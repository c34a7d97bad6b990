"""What the commands share: arguments, set-up of the process, errors without a traceback."""

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
from pmjax.storage import resource_errors


def run(command: Callable[[], None]) -> None:
    """Runs a command; a `UserError`, or too little disk or memory, ends it with status 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax logs errors that it raises, too
    sys.unraisablehook = _unraisable
    logging.getLogger().setLevel(logging.ERROR)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("pmjax")
    package.handlers, package.propagate = [handler], False
    package.setLevel(logging.INFO)
    try:
        with resource_errors.as_user_errors():
            command()
    except UserError as error:
        print(f"\nError: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        raise SystemExit(130) from None


def _unraisable(found) -> None:
    """Shows what nobody can catch, less what TensorStore's threads say of a failed save."""
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, dict[str, str]]:
    """Parses arguments; --config.name=value and --config.name value come as {name: value}."""
    known, rest = parser.parse_known_args()
    overrides, words = {}, iter(rest)
    options = [option for action in parser._actions for option in action.option_strings]
    for word in words:
        name, equals, value = word.partition("=")
        if not name.startswith("--config."):
            raise errors.unknown("argument", word, [*options, "--config.NAME=VALUE"])
        value = value if equals else next(words, None)
        if value is None:
            raise UserError(f"{name} needs a value: {name}=VALUE.")
        overrides[name.removeprefix("--config.")] = value
    return known, overrides


def cache_compilations() -> None:
    """Lets JAX keep compiled programs in a private directory, so that a second start is quick."""
    import jax

    base = os.environ.get("PMJAX_CACHE") or os.path.expanduser("~/.cache/pmjax")
    path = os.path.join(base, "jax")
    os.makedirs(path, mode=0o700, exist_ok=True)
    _drop_torn(Path(path))
    jax.config.update("jax_compilation_cache_dir", path)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def _drop_torn(folder: Path) -> None:
    """Deletes what a kill or a full disk has cut, which JAX would warn of at each start, and keep.

    It reads only what is new since the last start, and zlib's data only: JAX takes zstd if it is
    installed.
    """
    mark = folder / ".checked"
    try:
        since = mark.stat().st_mtime_ns if mark.exists() else 0
        mark.touch()  # first: what another process is writing is read at the next start
    except OSError:  # a directory that is only read
        return
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process has deleted it
            content = entry.read_bytes() if entry.stat().st_mtime_ns >= since else b"old"
            try:
                if content[:1] in (b"", b"x"):
                    zlib.decompress(content)
            except zlib.error:
                entry.unlink()
