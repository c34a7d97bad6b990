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
from pmjax.errors import UserError, some
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
    """Returns the file in a directory or its subfolders, the least deep one.

    Args:
        manual_dir: the directory.
        names: of the file, the preferred one first.
        usable: whether a path is such a file.
        other: whether a subfolder of that name belongs to another data set.

    Raises:
        UserError: if several files are equally near.
    """
    folders = [manual_dir]
    for depth in range(DEPTH + 1):
        files = [filter(usable, [folder / name for name in names]) for folder in folders]
        found = [file for each in files if (file := next(each, None))]
        if len(found) > 1:
            raise UserError(
                f"{found[0]} and {found[1]} may both be meant: pass the folder of one of them as "
                "manual_dir (--config.data.manual_dir)."
            )
        if found:
            if depth:
                tell(f"{manual_dir}: reading {found[0].parent}.")
            return found[0]
        entries = [entry for folder in folders for entry in _entries(folder)]
        folders = [Path(entry) for entry in entries if entry.is_dir() and not other(entry.name)]
    return None


def _entries(folder: Path) -> list[os.DirEntry]:
    """Returns what a directory holds, except hidden files, by name; [] if it cannot be read."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        return sorted((e for e in entries if not e.name.startswith(".")), key=lambda e: e.name)
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
    """Raises `UserError` for a missing file, with what `manual_dir` holds instead.

    `folder` is the name of an unpacked archive; a '.gz' file unpacks to its name without '.gz'.
    """
    for file in files:
        if file.exists():
            continue
        if not file.parent.is_dir():
            raise UserError(f"There is no directory {file.parent} (--config.data.manual_dir).")
        packed = file.suffix in (".gz", ".zip")
        unpacked = f" and no {f'directory {folder}' if folder else file.stem}" if packed else ""
        held = some([entry.name for entry in _entries(file.parent)])
        raise UserError(
            f"{file.parent} (--config.data.manual_dir) has no {file.name}{unpacked}, nor have its "
            f"subfolders. It holds {held or 'nothing'}. Get it from {origin} and put it "
            "there under this name."
        )


def check(file: Path, *, size: int, sha256: str, origin: str, content: bytes | None = None) -> None:
    """Raises `UserError` unless an archive has its registered size and checksum.

    `content` replaces the file's own, if the file is not in the published format.
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
