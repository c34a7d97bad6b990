"""A disk or a memory that is too small: found out by any library, told in one message."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pmjax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# What libraries written in C++ say, which give no number.
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
_DEVICE_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "Failed to allocate")
_MARGIN = 1 << 18  # bytes, for directories and descriptions


class NoSpace(UserError):
    """A disk is full."""


def is_full_disk(error: BaseException) -> bool:
    """Tells whether an error says that a disk is full, itself or by what it came from."""
    return any(
        getattr(e, "errno", None) in _FULL or any(word in str(e) for word in _FULL_WORDS)
        for e in _chain(error)
    )


def is_full_device(error: BaseException) -> bool:
    """Tells whether an error of JAX says that a device is out of memory."""
    return any(
        type(e).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        and any(word in str(e) for word in _DEVICE_WORDS)
        for e in _chain(error)
    )


def require_space(what: str, where: Path, *, needs: int, kept: str = "") -> None:
    """Raises `NoSpace` if fewer bytes are free in a directory than something takes."""
    if needs + _MARGIN > _free(where):
        raise no_space(what, where, needs=needs, kept=kept)


def no_space(what: str, path: Path | None, *, needs: int = 0, kept: str = "") -> NoSpace:
    """Returns the error that something, of so many bytes if that is known, finds no room."""
    there = f" in {path}" if path else ""
    numbers = [f"it takes {needs / 1e6:.1f} MB"] if needs else []
    numbers += [f"{_free(path) / 1e6:.1f} MB are free there"] if path else []
    return NoSpace(
        f"No space left for {what}{there}{': ' if numbers else ''}{', and '.join(numbers)}. "
        f"{kept}{' ' if kept else ''}Make room, and run the same command again: it goes on."
    )


@contextlib.contextmanager
def disk(what: str, where: Path | None, *, kept: str = "") -> Iterator[None]:
    """Turns whatever says that a disk is full into `NoSpace`.

    Args:
      what: is written.
      where: it is written to, unless the error names the file.
      kept: a sentence on what there is still.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        named = [e.filename for e in _chain(error) if getattr(e, "filename", None)]
        path = Path(os.fsdecode(named[0])) if named else where
        raise no_space(what, path, kept=kept) from error


@contextlib.contextmanager
def device_memory(
    stage: str, *, batch_size: int, accumulate: int, keys: tuple[str, str]
) -> Iterator[None]:
    """Turns an out-of-memory error of the devices into a `UserError` that says what to change.

    Args:
      stage: that is being trained.
      batch_size: of the global batch.
      accumulate: batches to an update.
      keys: of the config, of these two.
    """
    try:
        yield
    except Exception as error:
        if not is_full_device(error):
            raise
        size_key, accumulate_key = keys
        half = max(1, batch_size // 2)
        raise UserError(
            f"{stage}: the devices are out of memory with {size_key}={batch_size} "
            f"({_first_line(error)}). Take smaller batches and average their gradients, which "
            f"gives updates of as many examples: --{size_key}={half} "
            f"--{accumulate_key}={2 * accumulate}, with a new --workdir; or smaller nets; or let "
            f"less of the data be kept on the devices (--config.data.device_budget_gb)."
        ) from error


@contextlib.contextmanager
def as_user_errors(where: Path | None = None) -> Iterator[None]:
    """Turns what says that disk or memory is used up, anywhere in a command, into a `UserError`."""
    try:
        with disk("what this command writes", where, kept="What was finished before is kept."):
            yield
    except MemoryError as error:
        raise UserError(
            f"This machine's memory is too small ({_first_line(error)}). What was saved before is "
            f"kept. Free memory, or take smaller batches or fewer samples "
            f"(--config.eval.num_samples)."
        ) from error
    except Exception as error:
        if not is_full_device(error):
            raise
        raise UserError(
            f"The devices are out of memory ({_first_line(error)}). What was saved before is kept. "
            f"Close what else uses them, or take fewer samples (--config.eval.num_samples) or "
            f"smaller nets."
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and those that it came from, members of groups too."""
    seen, todo = set(), [error]
    while todo:
        error = todo.pop(0)
        if error is None or id(error) in seen:
            continue
        seen.add(id(error))
        yield error
        todo += [*getattr(error, "exceptions", ()), error.__cause__, error.__context__]


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _free(path: Path) -> int:
    """Returns the bytes that are free where a path is or would be."""
    for there in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(there).free
    return 0
