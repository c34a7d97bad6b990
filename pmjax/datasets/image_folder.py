"""A directory of a user's own images, of any size, mode and format.

With subdirectories 'train' and 'test' these are the splits; otherwise a tenth of the images, chosen
by a hash of the seed and the name, is for testing. Where every image lies in one of at least two
subdirectories (of the splits), these are the classes.
"""

import functools
import hashlib
import os
from pathlib import Path

from pmjax.datasets.base import SPLITS, Source
from pmjax.datasets.records import Files
from pmjax.errors import UserError

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
TEST_SHARE = 0.1


def source(*, path: Path | None, seed: int) -> Source:
    """RGB images, or greyscale if every single one is grey."""
    if path is None:
        raise UserError(
            "Data set 'image_folder' needs the directory of the images: path (--config.data.path)."
        )
    if not path.is_dir():
        raise UserError(f"There is no directory {path} (path, --config.data.path).")
    path = path.resolve()
    given = all((path / split).is_dir() for split in SPLITS)
    if given:
        splits = {split: images(path / split) for split in SPLITS}
    else:
        splits = _split(path, images(path), seed)
    labels = _labels(
        {split: [f.relative_to(path / split if given else path) for f in files]
         for split, files in splits.items()}
    )  # fmt: skip
    return Source(
        version="1.0.0",
        records=functools.partial(_records, path, splits, labels),
        files=tuple(file for split in SPLITS for file in splits[split]),
        identity=(str(path), None if given else seed),
    )


def images(path: Path) -> list[Path]:
    """Lists the images below a directory in order, following links but never in circles."""
    files, _ = listed(path)
    if not files:
        raise UserError(f"No images in {path}. Files with these endings are read: "
                        f"{' '.join(EXTENSIONS)}.")  # fmt: skip
    return files


def listed(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the images below a directory, and what else is there, less what is hidden."""
    files, others, seen = [], [], set()
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=_unreadable):
        real = os.path.realpath(folder)
        subfolders[:] = [] if real in seen else [s for s in subfolders if not s.startswith(".")]
        names = [] if real in seen else names
        seen.add(real)
        for name in names:
            if not name.startswith("."):
                image = name.lower().endswith(EXTENSIONS)
                (files if image else others).append(Path(folder, name))
    return sorted(files), sorted(others)


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed ({error.strerror}).") from error


def _split(path: Path, files: list[Path], seed: int) -> dict[str, list[Path]]:
    """Puts the images with the smallest hashes aside for testing, so that additions move few."""
    if len(files) < len(SPLITS):
        raise UserError(f"{path} holds a single image: training and testing need one each.")

    def rank(file: Path) -> bytes:
        name = os.fsencode(file.relative_to(path))
        return hashlib.sha256(b"%d/%s" % (seed, name)).digest()

    test = set(sorted(files, key=rank)[: max(1, round(TEST_SHARE * len(files)))])
    return {"train": [f for f in files if f not in test], "test": [f for f in files if f in test]}


def _labels(splits: dict[str, list[Path]]) -> dict[str, list[int]] | None:
    """Numbers the top directories of relative paths, if they are classes."""
    tops = {file.parts[0] if len(file.parts) > 1 else None for f in splits.values() for file in f}
    if None in tops or len(tops) < 2:
        return None
    number = {name: i for i, name in enumerate(sorted(tops))}
    return {split: [number[f.parts[0]] for f in files] for split, files in splits.items()}


def _records(path: Path, splits, labels) -> dict[str, Files]:
    return {
        split: Files(
            path, [os.fsencode(f.relative_to(path)) for f in files], labels and labels[split]
        )
        for split, files in splits.items()
    }
