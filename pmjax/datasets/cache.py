"""The arrays of a data set on disk: made once, resumably, published as a whole, then opened."""

import contextlib
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmjax.datasets.base import Dataset, Source
from pmjax.datasets.decode import CHUNK, Decoded, WorkerDied, decode_all, require_space
from pmjax.errors import UserError
from pmjax.storage import resource_errors
from pmjax.storage.lock import lock

FORMAT = 1  # of the files here and of decoding and resizing: raised when either changes


def load(
    name: str, split: str, *, source: Source, size: int | None, cache_dir, skip_broken: bool
) -> Dataset:
    """Returns a split out of the cache, which is made if it is missing or damaged."""
    root = Path(cache_dir or os.environ.get("PMJAX_CACHE") or "~/.cache/pmjax").expanduser()
    entry = root / name / _key(name, source, size)
    if (dataset := _open(entry, split)) is None:
        with lock(entry, f"data set '{name}' in {entry.parent}"):
            if (dataset := _open(entry, split)) is None:  # else another process has made it
                _make(entry, name, source=source, size=size, skip_broken=skip_broken)
                dataset = _open(entry, split)
    if dataset is None:
        raise UserError(f"What was just written to {entry} reads back differently: is it a sound "
                        "disk? Set cache_dir or the variable PMJAX_CACHE to another.")  # fmt: skip
    if dataset.skipped and not skip_broken:
        raise _broken(name, [_shown(file) for file in dataset.skipped])
    return dataset


def _shown(name: str) -> str:
    """Returns a file's name as a line that can be printed: with escapes for what cannot."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _stat(file: Path) -> os.stat_result:
    """Returns the state of a file; that of the link where that leads nowhere: it has a name."""
    try:
        return file.stat()
    except OSError:
        return file.lstat()


def _key(name: str, source: Source, size: int | None) -> str:
    """Returns a digest of everything that decides the content."""
    try:
        stats = [(str(file), _stat(file)) for file in source.files]
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
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        known = json.loads((entry / "meta.json").read_text())
        meta = known[split]
        data = np.load(entry / f"{split}.npy", mmap_mode="r")
        labels = np.load(entry / f"{split}_labels.npy") if meta["labels"] else None
        # Gigabytes are not hashed at each start: files of the size and time at which they were
        # last seen to have their fingerprint have it still. Others (touched, copied) are hashed.
        seen = _seen(entry, split)
        if meta.get("seen") != seen:
            if fingerprint(data, labels) != meta["fingerprint"]:
                raise ValueError("other content")
            with contextlib.suppress(OSError):  # a cache that is only read is hashed each time
                _write_json(entry / "meta.json", {**known, split: {**meta, "seen": seen}})
        if labels is not None:
            labels.flags.writeable = False
        return Dataset(data, labels, meta["fingerprint"], tuple(meta["skipped"]))
    print(f"The cached data set in {entry} is damaged and made again.", file=sys.stderr)
    return None


def _seen(folder: Path, split: str) -> list[list[int]]:
    """Returns sizes and times of a split's files, as JSON keeps them."""
    files = (folder / f"{split}.npy", folder / f"{split}_labels.npy")
    return [[f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.exists()]


def _write_json(file: Path, content: dict) -> None:
    """Replaces a file as a whole."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(json.dumps(content, indent=1))
    new.replace(file)


def _make(entry: Path, name: str, *, source: Source, size: int | None, skip_broken: bool) -> None:
    """Prepares all splits beside the entry, or goes on with that, then renames it into place."""
    work = entry.with_name(f".{entry.name}.work")
    try:
        if not (work / "meta.json").exists():
            _write(work, name, source=source, size=size, skip_broken=skip_broken)
        for smaller in work.glob("*.few"):
            smaller.replace(smaller.with_suffix(".npy"))
        meta = json.loads((work / "meta.json").read_text())
        for split in meta:
            meta[split]["seen"] = _seen(work, split)
        _write_json(work / "meta.json", meta)
        (work / "journal.jsonl").unlink(missing_ok=True)
        shutil.rmtree(entry, ignore_errors=True)
        work.rename(entry)
    except WorkerDied:
        raise
    except UserError:
        shutil.rmtree(work, ignore_errors=True)  # to be made from other files, or elsewhere
        raise
    except Exception as e:
        if not resource_errors.is_full_disk(e):
            if isinstance(e, OSError) and entry.is_dir():  # made by a host that took this for dead
                return
            raise
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(
            f"No space left for data set '{name}' in {entry.parent}. Make room, or set cache_dir "
            "(--config.data.cache_dir) or the variable PMJAX_CACHE to another disk."
        ) from e


def _write(work: Path, name: str, *, source: Source, size: int | None, skip_broken: bool) -> None:
    """Writes the arrays of all splits to a directory, and at last what to know about them."""
    scratch = work / "tfds"
    shutil.rmtree(scratch, ignore_errors=True)
    splits = None if source.stock else source.records()
    if splits is None or not all(isinstance(records, Sequence) for records in splits.values()):
        from pmjax.datasets import tfds_builder  # a second that others do without

        splits = tfds_builder.prepare(name, source, splits, scratch)
    work.mkdir(exist_ok=True)
    if source.points:
        meta = {split: _points(records, work, split) for split, records in splits.items()}
    else:
        decoded = decode_all(splits, work, name=name, size=size)
        reasons = [f"{_shown(f)}: {why}" for d in decoded.values() for f, why in d.broken.values()]
        if reasons and not skip_broken:
            raise _broken(name, reasons)
        if reasons:
            print(f"{name}: {_listing(reasons)}, left out.", file=sys.stderr)
        colour = any(d.colour for d in decoded.values())
        meta = {split: _finish(d, work, split, name, colour) for split, d in decoded.items()}
    shutil.rmtree(scratch, ignore_errors=True)
    _write_json(work / "meta.json", meta)


def _points(records: Sequence[dict], work: Path, split: str) -> dict:
    """Writes points [N, D], and returns what to know about them."""
    rows = [records[i] for i in range(len(records))]
    data = np.stack([row["point"] for row in rows])
    np.save(work / f"{split}.npy", data)
    return _about(work, split, data, [row.get("label") for row in rows], [])


def _finish(decoded: Decoded, work: Path, split: str, name: str, colour: bool) -> dict:
    """Leaves out what is broken, and channels that say nothing; returns what to know."""
    data = decoded.data
    good = np.array([i for i in range(len(data)) if i not in decoded.broken], np.int64)
    if not len(good):
        raise UserError(f"No file of the {split} split of '{name}' can be read.")
    if decoded.broken or not colour:
        shape = (len(good), *data.shape[1:-1], data.shape[-1] if colour else 1)
        file = work / f"{split}.few"
        require_space(work, {file: int(np.prod(shape))}, name)
        with file.open("wb") as rows:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(rows, header)
            for start in range(0, len(good), CHUNK):
                some = data[good[start : start + CHUNK], ..., : shape[-1]]
                rows.write(np.ascontiguousarray(some))
        data = np.load(file, mmap_mode="r")
    skipped = [file for file, _ in decoded.broken.values()]
    return _about(work, split, data, [decoded.labels[i] for i in good], skipped)


def _about(work: Path, split: str, data: np.ndarray, labels: list, skipped: list[str]) -> dict:
    """Writes the labels, if every example has one, and returns what to know about a split."""
    if None in labels:
        labels = None
    else:
        labels = np.array(labels, np.float32 if isinstance(labels[0], float) else np.int64)
        np.save(work / f"{split}_labels.npy", labels)
    for file in (work / f"{split}.npy", work / f"{split}_labels.npy", work / f"{split}.few"):
        if file.exists():
            with file.open("rb") as content:
                os.fsync(content)  # before meta.json, which vouches for it after a power cut too
    return {
        "fingerprint": fingerprint(data, labels),
        "labels": labels is not None,
        "skipped": skipped,
    }


def _broken(name: str, files: Sequence[str]) -> UserError:
    return UserError(
        f"Data set '{name}': {_listing(files)}. Mend or remove them, or leave them out with "
        "skip_broken=True (--config.data.skip_broken=True)."
    )


def _listing(files: Sequence[str], most: int = 10) -> str:
    more = f"; and {len(files) - most} more" if len(files) > most else ""
    return f"cannot read {len(files)} of its files ({'; '.join(files[:most])}{more})"
