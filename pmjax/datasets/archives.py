"""Verifies official archives that the user provides."""

import hashlib
from pathlib import Path

from pmjax.errors import UserError
from pmjax.reporting.progress import progress

BLOCK = 1 << 22  # bytes per read


def check(file: Path, *, size: int, sha256: str, source: str) -> None:
    """Raises a `UserError` unless a file has its registered size and checksum.

    Args:
        file: the archive.
        size: in bytes.
        sha256: in hexadecimal digits.
        source: where to get the archive, for the message.
    """
    found = file.stat().st_size
    if found != size:
        kind = "is truncated" if found < size else "is another file"
        raise _wrong(file, f"{kind}: {found} bytes, {size} expected", source)
    digest = hashlib.sha256()
    bar = progress(f"checking {file.name}", size, unit="B", unit_scale=True)
    with bar, file.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != sha256:
        what = f"is damaged or another version: sha256 {digest.hexdigest()}, {sha256} expected"
        raise _wrong(file, what, source)


def missing(folder: Path, names: tuple[str, ...], source: str) -> UserError:
    """Returns the error for a directory that lacks all of several alternative files."""
    return UserError(
        f"{folder} (--config.data.manual_dir) has no {' and no '.join(names)}. Get it from {source}"
        " and put it there under this name."
    )


def unreadable(file: Path, reason: object, kind: str, source: str) -> UserError:
    """Returns the error for an archive that cannot be read."""
    return UserError(f"{file} cannot be read ({reason}): it is {kind}. Get it again from {source}.")


def _wrong(file: Path, what: str, source: str) -> UserError:
    return UserError(
        f"{file} {what}. Get it again from {source}, or accept it as it is with verify=False "
        "(--config.data.verify=false)."
    )
