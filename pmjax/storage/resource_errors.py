"""Full disks and too little memory, wherever a library meets them, as one clear message."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from pmjax.errors import UserError

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# From libraries written in C++, which give no error number.
_FULL_WORDS = ("No space left on device", "Disk quota exceeded", "File too large")
_DEVICE_WORDS = ("RESOURCE_EXHAUSTED", "Out of memory", "Failed to allocate")
_MARGIN = 1 << 18  # bytes, for directories and metadata


class NoSpace(UserError):
    """A disk is full."""


def is_full_disk(error: BaseException) -> bool:
    """Returns whether an error, or one that caused it, says that a disk is full."""
    return any(
        getattr(e, "errno", None) in _FULL or any(word in str(e) for word in _FULL_WORDS)
        for e in _chain(error)
    )


def is_full_device(error: BaseException) -> bool:
    """Returns whether an error of JAX says that a device is out of memory."""
    return any(
        type(e).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
        and any(word in str(e) for word in _DEVICE_WORDS)
        for e in _chain(error)
    )


def require_space(what: str, where: Path, *, needs: int, still_intact: str = "") -> None:
    """Raises `NoSpace` if a directory has fewer than `needs` bytes free."""
    if needs + _MARGIN > _free(where):
        raise no_space(what, where, needs=needs, still_intact=still_intact)


def no_space(what: str, path: Path | None, *, needs: int = 0, still_intact: str = "") -> NoSpace:
    """Returns the error that there is no space for something, of `needs` bytes if that is known."""
    there = f" in {path}" if path else ""
    numbers = [f"it needs {needs / 1e6:.1f} MB"] if needs else []
    numbers += [f"{_free(path) / 1e6:.1f} MB are free there"] if path else []
    return NoSpace(
        f"No space left for {what}{there}{': ' if numbers else ''}{', and '.join(numbers)}. "
        f"{still_intact}{' ' if still_intact else ''}Free some space and run the same command "
        "again: it continues."
    )


@contextlib.contextmanager
def disk(what: str, where: Path | None, *, still_intact: str = "") -> Iterator[None]:
    """Turns errors that say that a disk is full into `NoSpace`.

    `what` is the thing written, `where` the directory for errors that name no file, `still_intact`
    the message's sentence on what is intact.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_full_disk(error):
            raise
        named = [e.filename for e in _chain(error) if isinstance(e, OSError) and e.filename]
        path = Path(os.fsdecode(named[0])) if named else where
        raise no_space(what, path, still_intact=still_intact) from error


@contextlib.contextmanager
def device_memory(
    stage: str, *, batch_size: int, accumulate: int, devices: int, keys: tuple[str, str]
) -> Iterator[None]:
    """Turns an out-of-memory error of the devices into a `UserError` that says what to change.

    `keys` are the config's keys of the batch size and of the number of batches per update.
    """
    size_key, accumulate_key = keys
    try:
        yield
    except Exception as error:
        if not is_full_device(error):
            raise
        half, smaller = batch_size // 2, "smaller nets, with a new --workdir"
        if half % devices == 0 and half > 1:  # a BatchNorm encodes a single example to 0
            smaller = (
                "smaller batches and average their gradients, for updates of as many examples: "
                f"--{size_key}={half} --{accumulate_key}={2 * accumulate}, with a new --workdir; "
                "or smaller nets"
            )
        raise UserError(
            f"{stage}: the devices are out of memory with {size_key}={batch_size} "
            f"({first_line(error)}). Use {smaller}; or keep less of the data on the devices "
            f"(--config.data.device_budget_gb)."
        ) from error


@contextlib.contextmanager
def as_user_errors(where: Path | None = None) -> Iterator[None]:
    """Turns errors of a full disk or memory, anywhere in a command, into `UserError`."""
    try:
        with disk(
            "this command's output", where, still_intact="Everything finished so far is saved."
        ):
            yield
    except Exception as error:
        if isinstance(error, MemoryError):
            what, smaller = "This machine's memory is too small", "smaller batches"
        elif is_full_device(error):
            what, smaller = "The devices are out of memory", "smaller nets"
        else:
            raise
        raise UserError(
            f"{what} ({first_line(error)}). What is saved is intact. Close other programs that "
            f"use it, or use {smaller} or fewer samples (--config.eval.num_samples)."
        ) from error


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an error and its causes, including members of exception groups."""
    seen: set[int] = set()
    todo: list[BaseException | None] = [error]
    while todo:
        each = todo.pop(0)
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        todo += [*getattr(each, "exceptions", ()), each.__cause__, each.__context__]


def first_line(error: BaseException) -> str:
    """Returns the start of an error's message, or the name of its class."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _free(path: Path) -> int:
    """Returns the free bytes of the disk that a path is on, or would be on."""
    for there in (path, *path.absolute().parents):
        with contextlib.suppress(OSError):
            return shutil.disk_usage(there).free
    return 0
