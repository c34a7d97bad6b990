"""Sets of images made by any tool: a folder of files, or an array in .npy or .npz."""

import abc
import copy
import dataclasses
import hashlib
import logging
import os
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pmjax import errors
from pmjax.datasets import image_codec
from pmjax.datasets.base import Dataset
from pmjax.datasets.cache import fingerprint
from pmjax.datasets.image_folder import images as images_below
from pmjax.errors import UserError
from pmjax.evals.context import derived_seed
from pmjax.evals.features.statistics import UNREADABLE, dimensions, shapes
from pmjax.evals.registry import metric_for_dimension

log = logging.getLogger(__name__)
SPLIT = "split"  # a floor that is a part of the reference
SHOWN = 10  # files in a message
ALPHA = "it has an alpha channel"
CHUNK = 1000  # images of floats in memory at a time


def compared(
    samples: Path, reference: Path, floor: Path | str | None, *, seed: int
) -> tuple[dict[str, Any], dict[str, dict]]:
    """Returns the sets of a comparison, and the provenance of each, by name.

    They are the `Dataset`s 'samples', 'reference' (a `Path` if it is of statistics only) and, with
    `floor`, 'floor': other images or, for `SPLIT`, a part of the reference; see `split`.

    Raises:
        UserError: for what cannot be read or compared.
    """
    paths = {"samples": samples, "reference": reference}
    if floor:
        paths["floor"] = reference if floor == SPLIT else Path(floor)
    sets: dict[str, Any] = {
        n: load(path) for n, path in paths.items() if n != "floor" or floor != SPLIT
    }
    if isinstance(sets["samples"], Path) or isinstance(sets.get("floor"), Path):
        raise UserError("--samples and --floor take images; only the reference may be statistics.")
    sets |= alike({n: each for n, each in sets.items() if not isinstance(each, Path)})
    whole = sets["reference"]
    if floor == SPLIT:
        num = len(sets["samples"].data)
        sets["reference"], sets["floor"] = split(whole, num, seed=seed)
    elif not floor:
        own = "" if isinstance(whole, Path) else f" or --floor={SPLIT} for a part of the reference,"
        log.info(
            "There is no floor: give other real images, about as many as samples, as "
            "--floor=FOLDER,%s to see what perfect samples would reach.",
            own,
        )
    about = {n: {"path": str(paths[n].resolve()), **_numbers(each)} for n, each in sets.items()}
    if floor == SPLIT:
        about |= {n: about[n] | {"part_of": _numbers(whole)} for n in ("reference", "floor")}
    return sets, about


def _numbers(images: Dataset | Path) -> dict:
    if isinstance(images, Path):
        return {"num": None, "fingerprint": None}
    return {"num": len(images.data), "fingerprint": images.fingerprint}


def split(reference: Dataset, num: int, *, seed: int) -> tuple[Dataset, Dataset]:
    """Returns the remainder of a reference, and a random part of it: the floor.

    The floor has `num` images, or half of all if that is fewer. Samples and floor are both compared
    with the remainder.

    Raises:
        UserError: if there are fewer than four images.
    """
    size = len(reference.data)
    count = min(num, size // 2)
    if size < 4:
        raise UserError(
            f"--floor={SPLIT} sets aside at most half of the reference, and a set has at least two "
            f"images: the reference has {size}. Give more, or other real images as --floor=FOLDER."
        )
    order = np.random.default_rng(derived_seed(seed, "split")).permutation(size)
    log.info(
        f"--floor={SPLIT}: {count} of the reference's {size} images, drawn with seed {seed}, are "
        f"the floor; samples and floor are compared with the other {size - count}."
    )
    if count < num:
        log.warning(
            f"The floor has fewer images than the {num} samples, so that it is biased upward by "
            f"its size: give {count} samples, or more of the reference."
        )

    def part(chosen: np.ndarray) -> Dataset:
        images: Any = Rows(reference.data, chosen)
        content = reference.fingerprint.encode() + chosen.tobytes()
        return Dataset(images, None, hashlib.sha256(content).hexdigest())

    return part(np.sort(order[count:])), part(np.sort(order[:count]))


def validate(reference: Path, floor: Path | str | None) -> None:
    """Raises `UserError` for a floor that is part of a reference without images."""
    if floor == SPLIT and dimensions(reference):
        if not _images_in(reference):
            raise UserError(
                f"--floor={SPLIT} sets aside images of the reference, and {reference} holds "
                "statistics only. Give its images as --reference=FOLDER, or other real images as "
                "--floor=FOLDER."
            )
        log.info("The statistics in %s include the floor's images: they are not used.", reference)


def metric_for(reference: Path) -> str:
    """Returns the default metric for a reference: on the features of its statistics, if it is."""
    dim = dimensions(reference)
    metric = metric_for_dimension(dim)
    if metric:
        log.info("%s holds statistics of %s features: --evals=%s.", reference, dim, metric)
    return metric or "fd_efficientnet_lite0"


def load(path: Path) -> Dataset | Path:
    """Returns the images of a folder or an array's file, or the path of an .npz of statistics only.

    Images of a folder are read when they are used; all must have one size, and no alpha channel.
    `image_folder.images` finds them. An array is uint8 [N, H, W, 1 or 3], or float within [0, 1];
    in an .npz, it is 'arr_0' or the only one of four dimensions.

    Raises:
        UserError: with what is missing, unreadable, of another size, not finite or out of range.
    """
    if path.is_dir():
        (files,) = images_below(path)
        folder: Any = Folder(path, files)
        return Dataset(folder, None, folder.fingerprint())
    if path.suffix not in (".npy", ".npz") or not path.is_file():
        raise UserError(f"{path} is neither a folder of images nor a .npy or .npz file.")
    name = _images_in(path)
    if not name and dimensions(path):
        return path
    try:
        found: Any = np.load(path, allow_pickle=False, mmap_mode="r")
        if path.suffix == ".npz":
            if not name:
                held = ", ".join(f"{n} {list(shape)}" for n, shape in shapes(path).items())
                raise ValueError(
                    f"it has arrays {held or 'none'}: images are one array [N, H, W, C] or "
                    "'arr_0', statistics are 'mu' [D] and 'sigma' [D, D]"
                )
            found = found[name]
    except UNREADABLE as error:
        raise UserError(f"{path} cannot be read as images or as statistics ({error}).") from error
    images = _eight_bits(path, found)
    return Dataset(images, None, fingerprint(images, None))


def _images_in(path: Path) -> str | None:
    """Returns the name of the images' array in an .npz, if there is one."""
    names = [name for name, shape in shapes(path).items() if len(shape) == 4]
    return "arr_0" if "arr_0" in names else names[0] if len(names) == 1 else None


def alike(sets: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Returns sets of images of one size, with gray ones as RGB if one set is RGB.

    Raises:
        UserError: if their sizes differ.
    """
    shapes = {name: tuple(each.data.shape[1:]) for name, each in sets.items()}
    if len({shape[:2] for shape in shapes.values()}) > 1:
        sizes = ", ".join(f"{name} {h}×{w}" for name, (h, w, _) in shapes.items())
        raise UserError(
            f"The sets have images of different sizes: {sizes} (height × width). Resize them "
            "first; the way of resizing changes every distance."
        )
    gray = [name for name, shape in shapes.items() if shape[2] == 1]
    if 0 < len(gray) < len(sets):
        log.info("Gray, compared as RGB with three equal channels: %s.", ", ".join(gray))
        rgb = {name: dataclasses.replace(sets[name], data=_rgb(sets[name].data)) for name in gray}
        return {**sets, **rgb}
    return dict(sets)


def _rgb(images: Any) -> Any:
    """Returns the same images with three channels, without a copy."""
    shape = (*images.shape[:3], 3)
    if not isinstance(images, Folder):
        return np.broadcast_to(images, shape)
    other = copy.copy(images)
    other.shape = shape
    return other


def _eight_bits(path: Path, images: np.ndarray) -> np.ndarray:
    known = images.dtype == np.uint8 or images.dtype.kind == "f"
    if not known or images.ndim != 4 or images.shape[-1] not in (1, 3):
        hint = ""
        if images.ndim == 4 and images.shape[1] in (1, 3):
            hint = " Channels come last: images.transpose(0, 2, 3, 1)."
        elif images.ndim == 4 and images.shape[-1] in (2, 4):
            hint = " Flatten the alpha channel first."
        raise UserError(
            f"{path} holds {images.dtype} {list(images.shape)}: images are uint8 or float "
            f"[N, H, W, 1 or 3].{hint}"
        )
    if images.dtype == np.uint8:
        return images
    found = np.empty(images.shape, np.uint8)
    for start in range(0, len(images), CHUNK):
        part = np.asarray(images[start : start + CHUNK])
        if not np.isfinite(part).all():
            raise UserError(f"{path} holds NaN or infinite values.")
        if part.min(initial=0) < 0 or part.max(initial=0) > 1:
            raise UserError(
                f"{path} holds floats from {part.min():.4g} to {part.max():.4g}: give uint8, or "
                "floats within [0, 1]."
            )
        found[start : start + CHUNK] = part * 255 + 0.5
    return found


class Lazy(abc.ABC):
    """Images uint8 [N, H, W, C] that are read when they are indexed, like an array."""

    dtype = np.dtype(np.uint8)
    ndim = 4
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    @abc.abstractmethod
    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """Reads the images of an index."""

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or np.uint8, copy=False)


class Rows(Lazy):
    """Some rows of a set of images."""

    def __init__(self, images: Any, rows: np.ndarray):
        self._images, self._rows = images, rows
        self.shape = (len(rows), *images.shape[1:])

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        return self._images[self._rows[index]]


class Folder(Lazy):
    """Files of one size as an array uint8 [N, H, W, 1 or 3], decoded when it is indexed.

    RGB, or gray if every file is. Nothing is rotated, cropped or resized, as in other evaluation
    tools. Only indexed images are in memory.
    """

    def __init__(self, path: Path, files: list[Path]):
        self.path, self.files = path, files
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            heads = list(pool.map(_head, files))
        self._reject((f, why) for f, (why, *_) in zip(files, heads, strict=True) if why)
        sizes: dict[tuple[int, int], list[Path]] = {}
        for file, (_, size, _) in zip(files, heads, strict=True):
            sizes.setdefault(size, []).append(file)
        if len(sizes) > 1:
            listed = ", ".join(
                f"{len(fs)} of {w}×{h} (as {self._name(fs[0])})"
                for (w, h), fs in sorted(sizes.items(), key=lambda item: -len(item[1]))[:SHOWN]
            )
            raise UserError(
                f"The images in {path} have different sizes: {listed}. Distances depend on "
                "the way of resizing: resize samples and reference in the same way first."
            )
        ((width, height),) = sizes
        channels = 1 if all(gray for *_, gray in heads) else 3
        self.shape = (len(files), height, width, channels)

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        files = self.files[index] if isinstance(index, slice) else [self.files[i] for i in index]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            decoded = list(pool.map(_decode, files))
        self._reject((f, x) for f, x in zip(files, decoded, strict=True) if isinstance(x, str))
        out = np.empty((len(files), *self.shape[1:]), np.uint8)
        for row, image in zip(out, map(np.asarray, decoded), strict=True):
            row[:] = image if image.ndim == 3 else image[..., None]
        return out

    def fingerprint(self) -> str:
        """Returns the sha256 over the contents of all files."""
        digest = hashlib.sha256()
        for file in self.files:
            with file.open("rb") as content:
                digest.update(hashlib.file_digest(content, "sha256").digest())
        return digest.hexdigest()

    def _name(self, file: Path) -> str:
        return errors.printable(str(file.relative_to(self.path)), keep="")

    def _reject(self, broken: Iterable[tuple[Path, str]]) -> None:
        reasons = [f"{self._name(file)}: {why}" for file, why in broken]
        if reasons:
            more = f"; and {len(reasons) - SHOWN} more" if len(reasons) > SHOWN else ""
            advice = "Fix or remove them."
            if any(ALPHA in each for each in reasons):
                advice = "Flatten the alpha channel onto one background first, and fix the others."
            raise UserError(
                f"{len(reasons)} of the images in {self.path} cannot be used "
                f"({'; '.join(reasons[:SHOWN])}{more}). {advice}"
            )


def _head(file: Path) -> tuple[str, tuple[int, int], bool]:
    """Returns an error message or '', the size, and whether it is gray, from a file's head."""

    def use(image: Image.Image) -> tuple[str, tuple[int, int], bool]:
        wrong = ALPHA if image.has_transparency_data else ""
        return wrong, image.size, image.mode in ("1", "L") or image.mode.startswith("I")

    try:
        return image_codec.read(file, use)
    except ValueError as error:
        return str(error), (0, 0), True


def _decode(file: Path) -> np.ndarray | str:
    """Returns the pixels, or an error message."""
    try:
        return image_codec.read(file, lambda image: np.asarray(image_codec.to_eight_bit(image)))
    except ValueError as error:
        return str(error)
