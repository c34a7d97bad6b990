"""Caches the arrays of a data set on disk: prepared once, resumably, and published atomically."""

import contextlib
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmjax import errors, paths
from pmjax.datasets.base import Dataset, Source
from pmjax.datasets.decode_pool import CHUNK, Decoded, WorkerDied, decode_all, require_space
from pmjax.errors import UserError
from pmjax.storage import resource_errors
from pmjax.storage.lock import lock

log = logging.getLogger(__name__)

FORMAT = 1  # of the files, decoding and resizing: raise it when any of them changes


def load(
    name: str,
    split: str,
    *,
    source: Source,
    size: int | None,
    cache_dir: str | Path | None,
    skip_broken: bool,
) -> Dataset:
    """Returns a split from the cache, preparing the data set if it is missing or damaged."""
    root = paths.local(cache_dir) if cache_dir else paths.cache()
    entry = root / name / _key(name, source, size)
    if (dataset := _open(entry, split)) is None:
        with lock(entry, f"data set '{name}' in {entry.parent}"):
            if (dataset := _open(entry, split)) is None:  # else another process has prepared it
                _prepare(entry, name, source=source, size=size, skip_broken=skip_broken)
                dataset = _open(entry, split)
    if dataset is None:
        raise UserError(
            f"The data set just written to {entry} reads back differently: the disk may be faulty. "
            "Set cache_dir (--config.data.cache_dir) or the variable PMJAX_CACHE to another disk."
        )
    if dataset.skipped and not skip_broken:
        raise _broken(name, [errors.printable(file, keep="") for file in dataset.skipped])
    return dataset


def _key(name: str, source: Source, size: int | None) -> str:
    """Returns a digest of everything that determines the content."""
    try:
        stats = [(str(f), f.stat(follow_symlinks=f.exists())) for f in source.files]
    except OSError as e:
        raise UserError(f"Data set '{name}' cannot read {e.filename}: {e.strerror}.") from e
    files = [(file, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
    identity = [FORMAT, name, source.stock, source.version, size, source.identity, files]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:24]


def fingerprint(data: np.ndarray, labels: np.ndarray | None) -> str:
    """Returns the sha256 of the types, shapes and values of data and labels."""
    digest = hashlib.sha256()
    for array in (data, labels):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return digest.hexdigest()


def _open(entry: Path, split: str) -> Dataset | None:
    """Returns a split from the cache, or None if it is missing or damaged."""
    if not os.path.isdir(entry):  # False without permission
        return None
    with contextlib.suppress(OSError, ValueError, EOFError, KeyError, TypeError, AttributeError):
        known = json.loads((entry / "meta.json").read_text())
        meta = known[split]
        data = np.load(entry / f"{split}.npy", mmap_mode="r")
        labels = np.load(entry / f"{split}_labels.npy") if meta["labels"] else None
        # Hashing gigabytes at each start would be slow: only files whose size or time differs from
        # the last verification (touched, copied) are hashed again.
        stats = _stats(entry, split)
        if meta.get("seen") != stats:
            if fingerprint(data, labels) != meta["fingerprint"]:
                raise ValueError("other content")
            with contextlib.suppress(OSError):  # a read-only cache is hashed each time
                _write_json(entry / "meta.json", {**known, split: {**meta, "seen": stats}})
        if labels is not None:
            labels.flags.writeable = False
        return Dataset(data, labels, meta["fingerprint"], tuple(meta["skipped"]))
    log.warning("The cached data set in %s is damaged; preparing it again.", entry)
    return None


def _stats(folder: Path, split: str) -> list[list[int]]:
    """Returns sizes and modification times of the files of a split, as JSON values."""
    files = (folder / f"{split}.npy", folder / f"{split}_labels.npy")
    return [[f.stat().st_size, f.stat().st_mtime_ns] for f in files if f.exists()]


def _write_json(file: Path, content: dict) -> None:
    """Replaces a file atomically."""
    new = file.with_name(f".{file.name}.{os.getpid()}")
    new.write_text(json.dumps(content, indent=1))
    new.replace(file)


def _prepare(
    entry: Path, name: str, *, source: Source, size: int | None, skip_broken: bool
) -> None:
    """Prepares all splits in a work directory, or resumes, then renames it to the entry."""
    work = entry.with_name(f".{entry.name}.work")
    try:
        if not (work / "meta.json").exists():
            _write(work, name, source=source, size=size, skip_broken=skip_broken)
        for smaller in work.glob("*.few"):
            smaller.replace(smaller.with_suffix(".npy"))
        meta = json.loads((work / "meta.json").read_text())
        for split in meta:
            meta[split]["seen"] = _stats(work, split)
        _write_json(work / "meta.json", meta)
        (work / "journal.jsonl").unlink(missing_ok=True)
        shutil.rmtree(entry, ignore_errors=True)
        work.rename(entry)
    except WorkerDied:
        raise
    except UserError:
        shutil.rmtree(work, ignore_errors=True)  # the next attempt has other files or another disk
        raise
    except Exception as e:
        if not resource_errors.is_full_disk(e):
            if isinstance(e, OSError) and entry.is_dir():
                return  # another host has replaced this one, which it took for dead
            raise
        shutil.rmtree(work, ignore_errors=True)
        raise UserError(
            f"No space left for data set '{name}' in {entry.parent}. Free some space, or set "
            "cache_dir (--config.data.cache_dir) or the variable PMJAX_CACHE to another disk."
        ) from e


def _write(work: Path, name: str, *, source: Source, size: int | None, skip_broken: bool) -> None:
    """Writes the arrays of all splits to a directory, then their descriptions (meta.json)."""
    if source.records:
        splits = {
            split: records if isinstance(records, Sequence) else list(records)
            for split, records in source.records().items()
        }
    else:
        from pmjax.datasets import tfds_builder  # takes a second, rarely needed

        splits = tfds_builder.prepared(name, source)
    if empty := [split for split, records in splits.items() if not len(records)]:
        raise UserError(f"Data set '{name}' has no examples in its split {' and '.join(empty)}.")
    work.mkdir(exist_ok=True)
    if size is None:  # points
        meta = {split: _points(records, work, split) for split, records in splits.items()}
    else:
        decoded = decode_all(splits, work, name=name, size=size)
        reasons = [
            f"{errors.printable(f, keep='')}: {why}"
            for d in decoded.values()
            for f, why in d.broken.values()
        ]
        if reasons and not skip_broken:
            raise _broken(name, reasons)
        if reasons:
            log.warning("%s: %s, skipped.", name, _listing(reasons))
        color = any(d.color for d in decoded.values())
        meta = {split: _finish(d, work, split, name, color) for split, d in decoded.items()}
    _write_json(work / "meta.json", meta)


def _points(records: Sequence[dict], work: Path, split: str) -> dict:
    """Writes points [N, D] and returns their description."""
    data = np.stack([record["point"] for record in records])
    np.save(work / f"{split}.npy", data)
    return _describe(work, split, data, [record.get("label") for record in records], [])


def _finish(decoded: Decoded, work: Path, split: str, name: str, color: bool) -> dict:
    """Removes unreadable images and redundant channels; returns the description of the split."""
    data = decoded.data
    good = np.array([i for i in range(len(data)) if i not in decoded.broken], np.int64)
    if not len(good):
        raise UserError(f"No file of the {split} split of '{name}' can be read.")
    if decoded.broken or not color:
        shape = (len(good), *data.shape[1:-1], data.shape[-1] if color else 1)
        file = work / f"{split}.few"
        require_space(work, {file: int(np.prod(shape))}, name)
        with file.open("wb") as rows:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(rows, header)
            for start in range(0, len(good), CHUNK):
                chunk = data[good[start : start + CHUNK], ..., : shape[-1]]
                rows.write(np.ascontiguousarray(chunk))
        data = np.load(file, mmap_mode="r")
    skipped = [file for file, _ in decoded.broken.values()]
    return _describe(work, split, data, [decoded.labels[i] for i in good], skipped)


def _describe(work: Path, split: str, data: np.ndarray, labels: list, skipped: list[str]) -> dict:
    """Writes the labels if every example has one; returns the description of a split."""
    array = None
    if None not in labels:
        array = np.array(labels, np.float32 if isinstance(labels[0], float) else np.int64)
        np.save(work / f"{split}_labels.npy", array)
    for file in (work / f"{split}.npy", work / f"{split}_labels.npy", work / f"{split}.few"):
        if file.exists():
            with file.open("rb") as content:
                os.fsync(content)  # before meta.json, which must be right even after a power cut
    return {
        "fingerprint": fingerprint(data, array),
        "labels": array is not None,
        "skipped": skipped,
    }


def _broken(name: str, files: Sequence[str]) -> UserError:
    return UserError(
        f"Data set '{name}': {_listing(files)}. Fix or remove them, or skip them with "
        "skip_broken=True (--config.data.skip_broken=True)."
    )


def _listing(files: Sequence[str], most: int = 10) -> str:
    more = f"; and {len(files) - most} more" if len(files) > most else ""
    return f"cannot read {len(files)} of its files ({'; '.join(files[:most])}{more})"
