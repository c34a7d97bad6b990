"""Data sets in official archives that the user provides, packed or unpacked."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmjax.datasets.base import Source
from pmjax.errors import UserError
from pmjax.reporting.progress import progress

BLOCK = 1 << 22  # bytes per read


def declare(
    records: Callable,
    files: tuple[Path, ...],
    *,
    verify: bool,
    unpacked: bool,
    origin: str,
    folder: str,
    **fields: Any,
) -> Source:
    """Returns the data set whose splits `records(files, verify=verify)` returns.

    A verified archive has known content: its arrays are found in the cache without the archive,
    wherever it was.

    Raises:
        UserError: for a missing file; `folder` is the name of an unpacked archive.
    """

    def read() -> Mapping[str, Sequence[dict]]:
        _require(files, folder, origin)
        return records(files, verify=verify)

    known = verify and not unpacked
    if not known:
        _require(files, folder, origin)
    return Source(
        version="1.0.0",
        records=read,
        files=() if known else files,
        identity=(verify, known),
        **fields,
    )


def _require(files: tuple[Path, ...], folder: str, origin: str) -> None:
    for file in files:
        if not file.exists():
            other = f" and no directory {folder}" if file.suffix in (".gz", ".zip") else ""
            raise UserError(
                f"{file.parent} (--config.data.manual_dir) has no {file.name}{other}. Get it from "
                f"{origin} and put it there under this name."
            )


def check(file: Path, *, size: int, sha256: str, origin: str) -> None:
    """Raises a `UserError` unless an archive has its registered size and checksum."""
    found = file.stat().st_size
    if found != size:
        kind = "is truncated" if found < size else "is another file"
        raise _wrong(file, f"{kind}: {found} bytes, {size} expected", origin)
    digest = hashlib.sha256()
    bar = progress(f"checking {file.name}", size, unit="B", unit_scale=True)
    with bar, file.open("rb") as content:
        while block := content.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    if digest.hexdigest() != sha256:
        what = f"is damaged or another version: sha256 {digest.hexdigest()}, {sha256} expected"
        raise _wrong(file, what, origin)


def unreadable(file: Path, reason: object, kind: str, origin: str) -> UserError:
    """Returns the error for an archive that cannot be read."""
    return UserError(f"{file} cannot be read ({reason}): it is {kind}. Get it again from {origin}.")


def _wrong(file: Path, what: str, origin: str) -> UserError:
    return UserError(
        f"{file} {what}. Get it again from {origin}, or accept it as it is with verify=False "
        "(--config.data.verify=false)."
    )
