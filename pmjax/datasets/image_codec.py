"""Decodes image files (PNG, JPEG, …) to square uint8 arrays."""

import contextlib
import functools
import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps

T = TypeVar("T")
# Formats that Pillow knows and cannot decode by itself (EPS and WMF call other programs).
NOT_READ = ("BUFR", "EPS", "GRIB", "HDF5", "IPTC", "MPEG", "WMF")


@functools.cache
def extensions() -> dict[str, str]:
    """Returns {extension of a file name: format}, of what Pillow reads."""
    found = Image.registered_extensions()  # loads every decoder: not at import
    return {e: f for e, f in sorted(found.items()) if f in Image.OPEN and f not in NOT_READ}


def decode(data: bytes | np.ndarray, size: int) -> np.ndarray:
    """Decodes an image, crops its central square and resizes it with antialiasing.

    The image is rotated according to EXIF, composited over white where transparent, and scaled
    (not clipped) to 0..255 where deeper than 8 bits; of several frames, the first is used. Damaged
    metadata are ignored.

    Args:
        data: a file in any format that Pillow reads, or uint8 [H, W] or [H, W, 3].
        size: side of the result in pixels.

    Returns:
        uint8 [size, size] for grayscale modes, else [size, size, 3].

    Raises:
        ValueError: if the image cannot be decoded, with a short reason.
    """
    if isinstance(data, np.ndarray):
        return np.asarray(_square(Image.fromarray(data), size))
    if not data:
        raise ValueError("empty or not readable")

    def use(image: Image.Image) -> np.ndarray:
        image.draft(None, (3 * size, 3 * size))  # JPEG: skips detail below the final resolution
        image.load()
        with contextlib.suppress(Exception):  # of metadata, which it writes after the rotation
            ImageOps.exif_transpose(image, in_place=True)
        return np.asarray(_square(to_eight_bit(image), size))

    return read(data, use)


def read(file: Path | bytes, use: Callable[[Image.Image], T]) -> T:
    """Returns `use(image)` of an image file, of which only the head is read before.

    If that fails, it is tried again without the file's metadata.

    Raises:
        ValueError: if the image cannot be decoded, with a short reason.
    """
    try:
        return _use(file, use)
    except Image.DecompressionBombError:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        raise ValueError(f"more than {limit} million pixels, scale it down first") from None
    except Exception as error:  # decoders raise nearly anything on a broken file
        with contextlib.suppress(Exception):
            data = file if isinstance(file, bytes) else file.read_bytes()
            return _use(_without_metadata(data), use)
        if isinstance(error, Image.UnidentifiedImageError):
            raise ValueError("not an image") from None
        raise ValueError(str(error) or type(error).__name__) from error


def _use(file: Path | bytes, use: Callable[[Image.Image], T]) -> T:
    source = io.BytesIO(file) if isinstance(file, bytes) else file
    with Image.open(source, formats=_formats()) as image:
        return use(image)


@functools.cache
def _formats() -> tuple[str, ...]:
    known = {*extensions().values()}
    return tuple(f for f in Image.ID if f in known)  # in Pillow's order, as some accept anything


def _without_metadata(data: bytes) -> bytes:
    """Returns a PNG or JPEG with its pixels, transparency, color transform and EXIF only.

    Raises:
        ValueError: for other files.
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kept, at = [data[:8]], 8
        while at < len(data):  # length, kind, content, checksum
            chunk = data[at : (at := at + 12 + int.from_bytes(data[at : at + 4], "big"))]
            kind, sound = chunk[4:8], zlib.crc32(chunk[4:-4]).to_bytes(4, "big") == chunk[-4:]
            metadata = kind.isalpha() and kind[:1].islower()
            if not metadata or kind == b"tRNS" or (kind == b"eXIf" and sound):
                kept.append(chunk)
        return b"".join(kept)
    if data.startswith(b"\xff\xd8\xff"):
        kept, at = [data[:2]], 2
        while data[at : at + 1] == b"\xff" and data[at + 1] not in (0xDA, 0xFF):  # not the pixels
            segment = data[at : (at := at + 2 + int.from_bytes(data[at + 2 : at + 4], "big"))]
            metadata = 0xE0 <= segment[1] <= 0xEF or segment[1] == 0xFE  # APP0 to APP15, comments
            adobe = segment[4:9] == b"Adobe" and len(segment) > 15
            if not metadata or adobe or segment[4:10] == b"Exif\0\0":
                kept.append(segment)
        return b"".join((*kept, data[at:]))
    raise ValueError("another format")


def _square(image: Image.Image, size: int) -> Image.Image:
    """Crops the central square and resizes it."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return image if side == size else image.resize((size, size), Image.Resampling.BICUBIC)


def to_eight_bit(image: Image.Image) -> Image.Image:
    """Converts any mode to 'L' or 'RGB'."""
    if image.mode.startswith("I"):  # 16 bits, in one of five modes
        values = np.asarray(image.convert("I"))
        if values.min() < 0 or values.max() > 65535:
            raise ValueError("integers outside 0..65535")
        return Image.fromarray(((values + 128) // 257).astype(np.uint8))
    if image.mode == "F":
        values = np.asarray(image)
        if not (values.min() >= 0 and values.max() <= 1):  # NaN too
            raise ValueError("floats outside 0..1")
        return Image.fromarray((values * 255 + 0.5).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("L" if image.mode in ("1", "L") else "RGB")
