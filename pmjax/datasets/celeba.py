"""CelebA (Liu et al. 2015), aligned and cropped, from TFDS or the official files.

Each image of 218 x 178 pixels is cropped to the central 178 x 178. The standard splits have
162770 training, 19867 validation and 19962 test images.

`manual_dir` or its subfolders contain list_eval_partition.txt (or Kaggle's .csv) and either
img_align_celeba.zip or the unpacked directory img_align_celeba.
"""

import contextlib
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pmjax.datasets import archives
from pmjax.datasets.base import Source
from pmjax.datasets.records import ImageFiles, ZipMembers
from pmjax.errors import UserError

STOCK = "celeb_a"  # in TFDS
PARTITION, IMAGES = "list_eval_partition.txt", "img_align_celeba"
TABLE = "list_eval_partition.csv"  # the same, on Kaggle
SPLITS = ("train", "validation", "test")  # 0, 1 and 2 in the list
ORIGIN = (
    "the Drive folders Img and Eval of https://mmlab.ie.cuhk.edu.hk/projects/CelebA.html "
    "(if their quota is exhausted, try again a day later)"
)


def source(*, manual_dir: Path | None, verify: bool) -> Source:
    """RGB 64 x 64 by default, without labels."""
    if manual_dir is None:
        return Source(version="2.1.0", size=64, stock=STOCK, splits=SPLITS)
    archive = f"{IMAGES}.zip"
    images = archives.find(manual_dir, (archive, IMAGES), usable=_has_images)
    partition = archives.find(manual_dir, (PARTITION, TABLE)) or manual_dir / PARTITION
    # A folder's modification time changes with its list of files.
    files = (partition, images or manual_dir / archive)
    unpacked = bool(images and images.is_dir())
    return archives.declare(
        _records, files, verify=verify, unpacked=unpacked, origin=ORIGIN, folder=IMAGES,
        size=64, splits=SPLITS,
    )  # fmt: skip


def _has_images(path: Path) -> bool:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        return any(entry.name.endswith(".jpg") for entry in entries)
    return path.is_file()


def read_partition(file: Path) -> dict[str, list[str]]:
    """Returns the images of each split in the order of the list, from its lines 'NAME 0|1|2'.

    Kaggle's .csv has commas and a header.
    """
    splits: dict[str, list[str]] = {split: [] for split in SPLITS}
    seen = set()
    for number, line in enumerate(file.read_text("utf-8-sig", "replace").splitlines(), 1):
        match line.replace(",", " ").split():
            case ["image_id", "partition"] if number == 1:
                continue
            case [name, ("0" | "1" | "2") as which] if name not in seen:
                splits[SPLITS[int(which)]].append(name)
                seen.add(name)
            case []:
                continue
            case _:
                raise UserError(
                    f"{file}, line {number}: {line[:80]!r} is not a new image and its split (0, 1 "
                    f"or 2). Get the file again from {ORIGIN}."
                )
    for split, names in splits.items():
        if not names:
            raise UserError(f"{file} lists no image of the {split} split.")
    return splits


def _records(files: tuple[Path, ...], *, verify: bool) -> dict[str, Sequence[dict]]:
    partition, images = files
    unpacked = images.is_dir()
    if verify:
        from pmjax.datasets.tfds_builder import registered  # takes a second to import

        for file in (partition,) if unpacked else files:
            content = None
            if file.name == TABLE:  # the official list has one split after another
                names = [*enumerate(read_partition(file).values())]
                content = "".join(f"{n} {i}\r\n" for i, part in names for n in part).encode()
            size, sha256 = registered(STOCK)[PARTITION if content else file.name]
            archives.check(file, size=size, sha256=sha256, origin=ORIGIN, content=content)
    splits = read_partition(partition)
    found: dict[str, Any]
    if unpacked:
        found = {f.name: f.name.encode() for f in images.glob("[!.]*.jpg")}
    else:
        found = _members(images)
    _check_same(splits, set(found), partition, images)
    records: Any = ImageFiles if unpacked else ZipMembers
    return {split: records(images, [found[n] for n in names]) for split, names in splits.items()}


def _members(archive: Path) -> dict[str, zipfile.ZipInfo]:
    """Returns the images of an archive by name."""
    try:
        with zipfile.ZipFile(archive) as content:
            infos = content.infolist()
    except Exception as e:  # damaged tables raise nearly anything
        raise archives.unreadable(archive, e, "truncated or no zip archive", ORIGIN) from e
    return {
        info.filename.rpartition("/")[-1]: info
        for info in infos
        if info.filename.endswith(".jpg") and not info.filename.startswith("__MACOSX/")
    }


def _check_same(
    splits: dict[str, list[str]], found: set[str], partition: Path, place: Path
) -> None:
    """Checks that the list and the archive or directory contain the same images."""
    listed = set().union(*splits.values())
    for lacking, what in (
        (listed - found, f"{place} lacks {{}} that {partition.name} lists"),
        (found - listed, f"{partition} does not list {{}} that {place.name} contains"),
    ):
        if lacking:
            images = f"{len(lacking)} images, such as {min(lacking)},"
            raise UserError(f"{what.format(images)}: they do not belong together, or one is "
                            f"incomplete. Get both from {ORIGIN}.")  # fmt: skip
