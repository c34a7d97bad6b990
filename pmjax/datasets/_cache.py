"""The arrays of a data set on disk: made once, atomically, and checked at each use."""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import json
import math
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.lib.format import open_memmap
from PIL import Image

from pmjax.datasets import Dataset, Source
from pmjax.datasets._images import decode
from pmjax.errors import UserError

FORMAT = 1  # of the files here and of decoding and resizing: raised when either changes
CHUNK = 512  # images between two updates of the progress bar
THREADED = 4096  # bytes of an image from which on threads gain more than they lose on Python's lock


def load(
    name: str, split: str, *, source: Source, size: int | None, cache_dir, skip_broken: bool
) -> Dataset:
    """Returns a split out of the cache, which is made if it is missing or damaged."""
    root = Path(cache_dir or os.environ.get("PMJAX_CACHE") or "~/.cache/pmjax").expanduser()
    entry = root / name / _key(name, source, size)
    if (dataset := _open(entry, split)) is None:
        with _locked(entry):
            if (dataset := _open(entry, split)) is None:  # else another process has made it
                _make(entry, name, source=source, size=size, skip_broken=skip_broken)
                dataset = _open(entry, split)
    if dataset is None:
        raise UserError(f"What was just written to {entry} reads back differently: is it a sound "
                        "disk? Set cache_dir or the variable PMJAX_CACHE to another.")  # fmt: skip
    if dataset.skipped and not skip_broken:
        raise _broken(name, dataset.skipped)
    return dataset


def _key(name: str, source: Source, size: int | None) -> str:
    """Returns a digest of everything that decides the content."""
    try:
        stats = [(str(file), file.stat()) for file in source.files]
    except OSError as e:
        raise UserError(f"Data set '{name}' cannot read {e.filename}: {e.strerror}.") from e
    files = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    identity = [FORMAT, name, source.stock, source.version, size, source.identity, files]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def fingerprint(data: np.ndarray, labels: np.ndarray | None) -> str:
    """Returns the sha256 over the types, shapes and values of data and labels."""
    digest = hashlib.sha256()
    for array in (data, labels):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _open(entry: Path, split: str) -> Dataset | None:
    """Returns a split as it lies in the cache, or None if it is not there unharmed."""
    if not entry.is_dir():
        return None
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, TypeError):
        meta = json.loads((entry / "meta.json").read_text())[split]
        data = np.load(entry / f"{split}.npy", mmap_mode="r")
        labels = np.load(entry / f"{split}_labels.npy") if meta["labels"] else None
        if fingerprint(data, labels) == meta["fingerprint"]:
            if labels is not None:
                labels.flags.writeable = False
            return Dataset(data, labels, meta["fingerprint"], tuple(meta["skipped"]))
    print(f"The cached data set in {entry} is damaged and made again.", file=sys.stderr)
    return None


@contextlib.contextmanager
def _locked(entry: Path) -> Iterator[None]:
    """Keeps other processes from making the same entry; the system unlocks for killed ones."""
    with contextlib.ExitStack() as stack:
        try:
            entry.parent.mkdir(parents=True, exist_ok=True)
            file = stack.enter_context((entry.parent / f".{entry.name}.lock").open("w"))
        except OSError as e:
            raise UserError(
                f"Cannot write to the cache {entry.parent}: {e.strerror}. Set cache_dir or the "
                "variable PMJAX_CACHE to a directory of yours."
            ) from e
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _make(entry: Path, name: str, *, source: Source, size: int | None, skip_broken: bool) -> None:
    """Prepares all splits beside the entry, then renames them into place."""
    work = entry.with_name(f".{entry.name}.{platform.node()}")
    shutil.rmtree(work, ignore_errors=True)  # of a killed process, as the lock is ours
    work.mkdir()
    try:
        meta = _write(work, name, source=source, size=size, skip_broken=skip_broken)
        (work / "meta.json").write_text(json.dumps(meta, indent=1))
        shutil.rmtree(entry, ignore_errors=True)
        try:
            work.rename(entry)
        except OSError:
            if not entry.is_dir():  # else made meanwhile by a host that does not see the lock
                raise
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise UserError(
            f"No space left for data set '{name}' in {entry.parent}. Make room, or set cache_dir "
            "or the variable PMJAX_CACHE to another disk."
        ) from e
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write(
    work: Path, name: str, *, source: Source, size: int | None, skip_broken: bool
) -> dict[str, dict]:
    """Writes the arrays of all splits to a directory and returns what to know about them."""
    from pmjax.datasets import _tfds  # not needed once the arrays are there

    scratch = work / "tfds"
    splits = {
        split: _points(records, work / split)
        if source.points
        else _images(records, work / split, size, _tfds.progress(f"{name}: {split}", len(records)))
        for split, records in _tfds.prepare(name, source, scratch).items()
    }
    shutil.rmtree(scratch, ignore_errors=True)
    reasons = [f"{file}: {why}" for part in splits.values() for file, why in part.broken.values()]
    if reasons and not skip_broken:
        raise _broken(name, reasons)
    if reasons:
        print(f"{name}: {_listing(reasons)}, left out.", file=sys.stderr)
    colour = any(part.colour for part in splits.values())
    return {split: part.finish(work / split, name, colour) for split, part in splits.items()}


@dataclasses.dataclass
class _Part:
    """A split while it is made."""

    data: np.memmap  # every record, also the broken ones
    labels: list  # of int, float or None
    colour: bool = True  # whether to keep more than one channel
    broken: dict[int, tuple[str, str]] = dataclasses.field(default_factory=dict)  # file, reason

    def finish(self, stem: Path, name: str, colour: bool) -> dict:
        """Writes the arrays of the records that are not broken, and returns what to know."""
        good = np.array([i for i in range(len(self.data)) if i not in self.broken], np.int64)
        if not len(good):
            raise UserError(f"No file of the {stem.name} split of '{name}' can be read.")
        data = self.data
        if self.broken or not colour:
            shape = (len(good), *data.shape[1:-1], data.shape[-1] if colour else 1)
            data = _array(stem.with_suffix(".few"), data.dtype, shape)
            for start in range(0, len(good), CHUNK):
                rows = good[start : start + CHUNK]
                data[start : start + CHUNK] = self.data[rows, ..., : shape[-1]]
            os.unlink(self.data.filename)
        data.flush()
        os.rename(data.filename, stem.with_suffix(".npy"))
        labels = [self.labels[i] for i in good]
        if None in labels:
            labels = None
        else:
            labels = np.array(labels, np.float32 if isinstance(labels[0], float) else np.int64)
            np.save(stem.with_name(f"{stem.name}_labels.npy"), labels)
        return {
            "fingerprint": fingerprint(data, labels),
            "labels": labels is not None,
            "skipped": [file for file, _ in self.broken.values()],
        }


def _array(file: Path, dtype, shape: tuple[int, ...]) -> np.memmap:
    """Makes a memory-mapped array, of which a full disk would kill the process later."""
    if shutil.disk_usage(file.parent).free < np.dtype(dtype).itemsize * math.prod(shape):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
    return open_memmap(file, "w+", dtype, shape)


def _points(records: Sequence[dict], raw: Path) -> _Part:
    """Reads points [N, D]."""
    rows = [records[i] for i in range(len(records))]
    data = _array(raw, np.float32, (len(rows), *rows[0]["point"].shape))
    data[:] = np.stack([row["point"] for row in rows])
    return _Part(data, [row.get("label") for row in rows])


def _images(records: Sequence[dict], raw: Path, size: int, bar) -> _Part:
    """Decodes images to [N, size, size, 3]."""
    data = _array(raw, np.uint8, (len(records), size, size, 3))
    part = _Part(data, [None] * len(records), colour=False)

    def read(i: int) -> bool:
        record = records[i]
        part.labels[i] = record.get("label")
        try:
            image = decode(record["image"], size)
        except ValueError as e:
            file = record.get("file", f"record {i} of {raw.name}".encode())
            part.broken[i] = (os.fsdecode(file), str(e))
            return False
        data[i] = image if image.ndim == 3 else image[..., None]
        return image.ndim == 3 and bool((image != image[..., :1]).any())

    with bar, warnings.catch_warnings(), ThreadPoolExecutor(os.cpu_count()) as pool:
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the error is enough
        mapped = pool.map if len(records[0]["image"]) >= THREADED else map
        for start in range(0, len(records), CHUNK):  # so that Ctrl-C need not wait for all
            chunk = range(start, min(start + CHUNK, len(records)))
            part.colour |= any(list(mapped(read, chunk)))
            bar.update(len(chunk))
    part.broken = dict(sorted(part.broken.items()))
    return part


def _broken(name: str, files: Sequence[str]) -> UserError:
    return UserError(
        f"Data set '{name}': {_listing(files)}. Mend or remove them, or leave them out with "
        "skip_broken=True (--config.data.skip_broken=True)."
    )


def _listing(files: Sequence[str], most: int = 10) -> str:
    more = f"; and {len(files) - most} more" if len(files) > most else ""
    return f"cannot read {len(files)} of its files ({'; '.join(files[:most])}{more})"
