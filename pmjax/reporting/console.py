"""Output to the console, above the status line, or to a file, even if nobody reads it."""

import copy
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from pmjax import errors
from pmjax.errors import UserError


class Output:
    """A stream that never fails: a broken or closed one loses what is written to it."""

    def __init__(self, stream: TextIO | None, *, escape: bool = False):
        """Wraps a stream, or None; `escape` makes all text printable."""
        with suppress(AttributeError, OSError, ValueError):  # characters that its encoding lacks
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
        self._wrapped, self._escape = stream, escape
        self.failure: Exception | None = None  # the first one

    def write(self, text: str) -> int:
        """Writes a text."""
        self._try("write", errors.printable(text) if self._escape else text)
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._try("flush")

    def isatty(self) -> bool:
        """Returns whether the stream is a terminal that still exists."""
        return bool(self._try("isatty"))

    def _try(self, method: str, *args: str) -> Any:
        try:
            return getattr(self._wrapped, method)(*args) if self._wrapped else None
        except (OSError, ValueError) as error:  # broken, or closed
            self.failure = self.failure or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._wrapped, name)

    def __eq__(self, other: object) -> bool:
        """Returns whether both write to the same stream, by which tqdm finds its bars."""
        return self._wrapped is getattr(other, "_wrapped", other)

    def __hash__(self) -> int:
        return id(self._wrapped)


def steady(stream: TextIO | None) -> Any:
    """Returns a stream as an `Output`."""
    return stream if isinstance(stream, Output) else Output(stream)


@contextmanager
def steady_output() -> Iterator[None]:
    """Lets a command reach its end even if its stdout or stderr fails.

    Raises:
      SystemExit: at the end, with the status of SIGPIPE, if nobody reads stdout any more.
      UserError: at the end, if stdout could not be written for another reason.
    """
    for number in range(3):  # the next file to be opened would get the number of a closed one
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    sys.stdout, sys.stderr = Output(sys.stdout, escape=True), steady(sys.stderr)  # type: ignore
    try:
        yield
    except SystemExit as end:
        if end.code:
            raise
    sys.stdout.flush()
    failure = sys.stdout.failure  # type: ignore[attr-defined]
    if isinstance(failure, BrokenPipeError):
        raise SystemExit(128 + signal.SIGPIPE)
    if failure:
        raise UserError(f"stdout could not be written ({failure}). All files are complete.")


def setup(stream: TextIO | None = None) -> None:
    """Shows this package's log lines, and other packages' errors, on stderr or a stream."""
    _install(_Console(stream), _Formatter("%(message)s"))


def log_to_file(path: Path) -> None:
    """Appends log lines to a file instead of showing them; raises `UserError` if it cannot."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _File(path, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error
    _install(handler, _Formatter("%(asctime)s %(message)s"))


def _install(handler: logging.Handler, formatter: logging.Formatter) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        # absl adds a plain handler when Orbax is imported; every line would appear twice.
        if isinstance(old, _Console | _File) or type(old) is logging.StreamHandler:
            root.removeHandler(old)
            with suppress(OSError):  # a full disk, which _File has reported
                old.close()
    handler.setFormatter(formatter)
    root.addHandler(handler)
    root.setLevel(logging.ERROR)
    for name in ("pmjax", "__main__"):  # `python -m pmjax.main` logs as __main__
        logging.getLogger(name).setLevel(logging.INFO)


class _Formatter(logging.Formatter):
    """Marks warnings and errors; escapes what is not printable, also line breaks in arguments."""

    def format(self, record: logging.LogRecord) -> str:
        if isinstance(record.args, tuple):
            record = copy.copy(record)
            record.args = tuple(
                errors.printable(str(arg), keep="") if isinstance(arg, str | os.PathLike) else arg
                for arg in record.args or ()
            )
        return errors.printable(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname.capitalize()}: {record.message}"
        return super().formatMessage(record)


class _Console(logging.Handler):
    """Writes lines above the progress bars and the status line, which tqdm puts back."""

    def __init__(self, stream: TextIO | None):
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        stream = steady(self._stream or sys.stderr)
        try:
            tqdm.write(self.format(record), file=stream)
            stream.flush()
        except Exception:
            self.handleError(record)


class _File(logging.FileHandler):
    """Reports only once that a line cannot be written; the run continues without its log."""

    _failed = False

    def handleError(self, record: logging.LogRecord) -> None:
        failed, self._failed = self._failed, True
        with suppress(OSError):  # stderr may be on the same disk
            if not failed:
                error = sys.exc_info()[1]
                print(f"{self.baseFilename} cannot be written ({error}).", file=sys.stderr)
