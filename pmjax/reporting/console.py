"""Where log lines go: to the console, above the status line, or to a file."""

import logging
import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from tqdm import tqdm

from pmjax.errors import UserError


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
    """Marks warnings and errors."""

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
        stream = self._stream or sys.stderr
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
