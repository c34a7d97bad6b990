"""A directory of the user's own images, of any size, mode and format.

Subdirectories 'train' and 'test' are the splits, under any of their usual names (`SPLIT_NAMES`) and
beside a common word, as in 'seg_train' and 'seg_test'. A validation set is the test split if there
is no test set. Without such subdirectories, a tenth of the images, chosen by a hash of the seed and
the name, is the test split. If every image is in one of at least two subdirectories (of the
splits), the subdirectories are the classes.
"""

import collections
import functools
import hashlib
import logging
import os
import re
from collections.abc import Iterable
from pathlib import Path

from pmjax.datasets.base import SPLITS, Source
from pmjax.datasets.image_codec import extensions
from pmjax.datasets.records import ImageFiles
from pmjax.errors import UserError, some

log = logging.getLogger(__name__)
# Once in a process, as every split is loaded by itself.
warn_once, tell_once = functools.cache(log.warning), functools.cache(log.info)
SPLIT_NAMES = {
    "train": {"train", "training", "trainset", "trainval"},
    "test": {"test", "testing", "testset"},
    "validation": {"val", "valid", "validation", "valset", "dev", "eval", "evaluation", "holdout"},
}  # in lower case; as words of a name, such as 'Training_set' and 'val2017'
FILLERS = {"data", "image", "images", "img", "imgs", "set", "split"}  # other words of such a name
# What operating and storage systems add to folders, besides hidden files.
SYSTEM = {
    "#recycle", "#snapshot", "$recycle.bin", "@__thumb", "@eadir", "@recycle", "__macosx",
    "desktop.ini", "lost+found", "system volume information", "thumbs.db",
}  # fmt: skip
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
    if given := _given(path):
        splits = dict(zip(given, images(path, given.values()), strict=True))
    else:
        files = images(path)[0]
        _point_out_inner_splits(path, files)
        splits = _split(path, files, seed)
    labels = _labels(
        {split: [f.relative_to(path / given.get(split, "")) for f in files]
         for split, files in splits.items()}
    )  # fmt: skip
    kinds = len(set().union(*labels.values())) if labels else "none"
    tell_once(
        f"{path}: {len(splits['train'])} training and {len(splits['test'])} test images; classes: "
        f"{kinds}."
    )
    return Source(
        version="1.1.0",
        records=functools.partial(_records, path, splits, labels),
        files=tuple(file for split in SPLITS for file in splits[split]),
        identity=(str(path), None if given else seed),
    )


def images(path: Path, folders: Iterable[str] = ("",)) -> list[list[Path]]:
    """Returns the sorted images below each of some folders of a directory.

    Links are followed, without cycles. Hidden files and those of operating systems are ignored. One
    warning counts all other files by their endings.

    Raises:
        UserError: if one of the folders has no image.
    """
    found: list[list[Path]] = []
    others = collections.Counter[str]()
    for folder in folders:
        own: list[Path] = []
        for file in sorted(_files(path / folder)):
            if (ending := file.suffix.lower()) in extensions():
                own.append(file)
            else:
                others[ending if ending and ending.isprintable() else "without an ending"] += 1
        counts = some(
            [f"{-n} {ending}" for n, ending in sorted((-n, e) for e, n in others.items())]
        )
        if not own:
            raise UserError(
                f"No images in {path / folder}{counts and f', only files left out: {counts}'}. "
                f"Supported file name extensions: {' '.join(extensions())}."
            )
        found.append(own)
    if others:
        warn_once(
            f"{path}: files are left out, as their names do not end like those of images: {counts}."
        )
    return found


def _files(path: Path) -> list[Path]:
    files: list[Path] = []
    seen: set[str] = set()
    for folder, subfolders, names in os.walk(path, followlinks=True, onerror=_unreadable):
        if (real := os.path.realpath(folder)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = filter(_visible, subfolders)
        files += [Path(folder, name) for name in names if _visible(name)]
    return files


def _visible(name: str) -> bool:
    return not name.startswith(".") and name.lower() not in SYSTEM


def _given(path: Path) -> dict[str, str]:
    """Returns the subdirectory of each split; {} if there are none.

    Raises:
        UserError: if there is none for training, or several for one split.
    """
    _, subfolders, _ = next(os.walk(path, onerror=_unreadable))
    names = sorted(filter(_visible, subfolders))
    found = _by_split(names)
    train, test = found["train"], found["test"] or found["validation"]
    if test and not train:
        raise UserError(
            f"{path} has a folder '{test[0]}', by its name held-out data, and none for training: "
            f"call that one 'train'. To use '{test[0]}' alone, pass {path / test[0]} as path "
            "(--config.data.path). If it is a class, rename it."
        )
    if not test:
        known = set().union(*SPLIT_NAMES.values())
        if alike := [f"'{name}'" for name in names if _words(name) & known]:
            warn_once(
                f"{path}: a tenth of all images, also of those in {some(alike)}, is the test "
                "split. If these folders are splits, call them 'train' and 'test'."
            )
        return {}
    for split, same in {"train": train, "test": test}.items():
        if len(same) > 1:
            raise UserError(
                f"{path} has several folders that may be the {split} split: {some(same)}. Call the "
                f"right one '{split}', and move the others elsewhere."
            )
    given = {"train": train[0], "test": test[0]}
    rest = [name for name in names if name not in given.values()]
    if rest or not found["test"]:
        more = rest and f"; left out: {some(rest)}"
        warn_once(f"{path}: training is on '{train[0]}' and testing on '{test[0]}'{more or ''}.")
    return given


def _words(name: str) -> set[str]:
    return {word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name)}


def _by_split(names: Iterable[str]) -> dict[str, list[str]]:
    """Returns those of some names of folders that mean a split.

    These are 'train', 'test', …; if there are none, pairs such as 'seg_train' and 'seg_test'.
    """
    found: dict[frozenset[str], dict[str, list[str]]] = {}
    for name in names:
        words = _words(name) - FILLERS
        for split, known in SPLIT_NAMES.items():
            if len(words & known) == 1:
                own = found.setdefault(frozenset(words - known), {each: [] for each in SPLIT_NAMES})
                own[split].append(name)
    plain = found.pop(frozenset(), None)
    pairs = [own for own in found.values() if own["train"] and (own["test"] or own["validation"])]
    given = [plain] if plain else pairs
    return {split: [name for own in given for name in own[split]] for split in SPLIT_NAMES}


def _point_out_inner_splits(path: Path, files: list[Path]) -> None:
    """Warns of splits further below, as in an archive that was unpacked into its own folder."""
    folders = {folder for file in {f.parent for f in files} for folder in (file, *file.parents)}
    inner = collections.defaultdict(list)
    for folder in sorted(f for f in folders if path in f.parent.parents):
        inner[folder.parent].append(folder.name)
    for folder, names in inner.items():
        found = _by_split(names)
        if found["train"] and (test := found["test"] or found["validation"]):
            warn_once(
                f"{path}: a tenth of all images, also of those in {folder}, is the test split. It "
                f"has folders '{found['train'][0]}' and '{test[0]}': if these are splits, give "
                f"{folder} as path (--config.data.path)."
            )
            return


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
