"""A directory of the user's own images, of any size, mode and format.

Subdirectories 'train' and 'test' are the splits. Without them, a tenth of the images, chosen by a
hash of the seed and the name, is the test split. If every image is in one of at least two
subdirectories (of the splits), the subdirectories are the classes.
"""

import functools
import hashlib
import os
from pathlib import Path

from pmjax.datasets.base import SPLITS, Source
from pmjax.datasets.records import ImageFiles
from pmjax.errors import UserError

EXTENSIONS = (
    ".avif", ".bmp", ".gif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)  # fmt: skip
TEST_SHARE = 0.1


def source(*, path: Path | None, seed: int) -> Source:
    """RGB images, or grayscale if all of them are gray."""
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
    """Returns the images below a directory in order."""
    files, _ = listed(path)
    if not files:
        raise UserError(f"No images in {path}. Supported file name extensions: "
                        f"{' '.join(EXTENSIONS)}.")  # fmt: skip
    return files


def listed(path: Path) -> tuple[list[Path], list[Path]]:
    """Returns the images and the other files below a directory, without hidden files.

    Links are followed, without cycles.
    """
    files: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=_unreadable):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    found = sorted(file for file in files if file.name.lower().endswith(EXTENSIONS))
    return found, sorted({*files} - {*found})


def _unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be listed ({error.strerror}).") from error


def _split(path: Path, files: list[Path], seed: int) -> dict[str, list[Path]]:
    """Assigns the images with the smallest hashes to testing: adding images moves few others."""
    if len(files) < len(SPLITS):
        raise UserError(f"{path} contains a single image: training and testing need one each.")

    def rank(file: Path) -> bytes:
        name = os.fsencode(file.relative_to(path))
        return hashlib.sha256(b"%d/%s" % (seed, name)).digest()

    test = set(sorted(files, key=rank)[: max(1, round(TEST_SHARE * len(files)))])
    return {"train": [f for f in files if f not in test], "test": [f for f in files if f in test]}


def _labels(splits: dict[str, list[Path]]) -> dict[str, list[int]] | None:
    """Numbers the top-level directories of relative paths if they are classes."""
    files = [file for split in splits.values() for file in split]
    tops = {file.parts[0] for file in files}
    if any(len(file.parts) == 1 for file in files) or len(tops) < 2:
        return None
    number = {name: i for i, name in enumerate(sorted(tops))}
    return {split: [number[f.parts[0]] for f in files] for split, files in splits.items()}


def _records(
    path: Path, splits: dict[str, list[Path]], labels: dict[str, list[int]] | None
) -> dict[str, ImageFiles]:
    return {
        split: ImageFiles(
            path,
            [os.fsencode(f.relative_to(path)) for f in files],
            labels[split] if labels else None,
        )
        for split, files in splits.items()
    }
