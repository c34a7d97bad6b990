"""Data sets in official archives that the user provides, packed or unpacked."""

import contextlib
import functools
import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pmjax.datasets.base import Source
from pmjax.errors import UserError
from pmjax.reporting.progress import progress

log = logging.getLogger(__name__)
tell = functools.cache(log.info)  # once in a process, as every split is loaded by itself
BLOCK = 1 << 22  # bytes per read
DEPTH = 3  # of the subfolders of manual_dir that are searched


def find(
    manual_dir: Path,
    names: Iterable[str],
    *,
    usable: Callable[[Path], bool] = Path.is_file,
    other: Callable[[str], bool] = lambda name: False,
) -> Path | None:
    """Returns the nearest file under one of its names in a directory or its subfolders.

    Args:
        manual_dir: the directory.
        names: the preferred one first.
        usable: whether a path is such a file.
        other: whether a subfolder of that name belongs to another data set.

    Raises:
        UserError: if several are equally near.
    """
    folders = [manual_dir]
    for depth in range(DEPTH + 1):
        each = [[f for name in names if usable(f := folder / name)] for folder in folders]
        found = [files[0] for files in each if files]
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1]} may both be meant: give the folder of one of them as "
                "manual_dir (--config.data.manual_dir)."
            )
        if found:
            if depth:
                tell(f"{manual_dir}: {found[0].parent} is read.")
            return found[0]
        folders = [
            folder / name for folder in folders for name in _names(folder, os.DirEntry.is_dir)
            if not other(name)
        ]  # fmt: skip
    return None


def _names(folder: Path, chosen: Callable[[os.DirEntry], bool] = lambda entry: True) -> list[str]:
    """Returns the sorted names in a directory without hidden ones; none if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and chosen(e))
    return []


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
        require(files, origin=origin, folder=folder)
        return records(files, verify=verify)

    known = verify and not unpacked
    if not known:
        require(files, origin=origin, folder=folder)
    return Source(
        version="1.0.0",
        records=read,
        files=() if known else files,
        identity=(verify, known),
        **fields,
    )


def require(files: Iterable[Path], *, origin: str, folder: str = "") -> None:
    """Raises a `UserError` for a missing file, which says what is there and what was expected.

    `folder` is the name of an unpacked archive; a file is unpacked under its name without '.gz'.
    """
    for file in files:
        if file.exists():
            continue
        if not file.parent.is_dir():
            raise UserError(f"There is no directory {file.parent} (--config.data.manual_dir).")
        packed = file.suffix in (".gz", ".zip")
        unpacked = f" and no {f'directory {folder}' if folder else file.stem}" if packed else ""
        held = _names(file.parent)
        more = ", …" if len(held) > 10 else ""
        raise UserError(
            f"{file.parent} (--config.data.manual_dir) has no {file.name}{unpacked}, nor have its "
            f"subfolders. It holds {', '.join(held[:10]) or 'nothing'}{more}. Get it from {origin} "
            "and put it there under this name."
        )


def check(file: Path, *, size: int, sha256: str, origin: str, content: bytes | None = None) -> None:
    """Raises a `UserError` unless an archive has its registered size and checksum.

    `content` is that of the file as it was published, if it has another format.
    """
    found = file.stat().st_size if content is None else len(content)
    if found != size:
        kind = "is truncated" if found < size else "is another file"
        raise _wrong(file, f"{kind}: {found} bytes, {size} expected", origin)
    digest = hashlib.sha256()
    bar = progress(f"checking {file.name}", size, unit="B", unit_scale=True)
    with bar, file.open("rb") if content is None else io.BytesIO(content) as source:
        while block := source.read(BLOCK):
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
