"""Records of images that processes can take from: they are pickled as places, not as contents."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmjax.errors import UserError


class Arrays(Sequence):
    """Images that are decoded already."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Takes uint8 [N, H, W] or [N, H, W, 3], and integers [N]."""
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict:
        return {"image": self._images[i], "label": int(self._labels[i])}


class Files(Sequence):
    """Image files below a directory."""

    def __init__(self, folder: Path, names: Sequence[bytes], labels: Sequence[int] | None = None):
        self._folder, self._names, self._labels = folder, names, labels

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> dict:
        try:
            place = self._folder / os.fsdecode(self._names[i])
            image = place.read_bytes() if place.is_file() else b""  # a pipe would never end
        except OSError:
            image = b""  # reported with the other broken files
        record = {"image": image, "file": self._names[i]}
        return record if self._labels is None else {**record, "label": self._labels[i]}


# Bytes that one image file of an archive can unpack to; one of more reads as damaged.
_LARGEST = 1 << 30


class Zipped(Sequence):
    """Images in a zip archive, read at their places: its table of contents takes seconds to read.

    A damaged image reads as empty bytes, which are reported with the other broken files.
    """

    def __init__(self, file: Path, infos: Sequence[zipfile.ZipInfo]):
        """Takes an archive and what its table says of the images."""
        for info in infos:
            stored = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if not stored or info.flag_bits & 1:
                raise UserError(
                    f"{file}: {info.filename} is encrypted or of an unusual compression. Pack the "
                    "archive again with zip's defaults."
                )
        self._file = file
        self._names = [os.fsencode(info.filename) for info in infos]
        self._places = np.array(
            [
                (
                    i.header_offset,
                    i.compress_size,
                    min(i.file_size, _LARGEST),
                    i.compress_type,
                    i.CRC,
                )
                for i in infos
            ],
            np.int64,
        ).reshape(-1, 5)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> dict:
        start, length, unpacked, kind, crc = self._places[i].tolist()
        if start < 0:  # in a damaged table
            return {"image": b"", "file": self._names[i]}
        with self._file.open("rb") as file:
            file.seek(start)
            header = file.read(30)
            name, extra = header[26:28], header[28:30]  # their lengths; the table may have others
            file.seek(sum(int.from_bytes(n, "little") for n in (name, extra)), os.SEEK_CUR)
            image = file.read(length)
        try:
            if kind == zipfile.ZIP_DEFLATED:  # no farther than the table says
                image = zlib.decompressobj(-15).decompress(image, max(1, unpacked))
        except zlib.error:
            image = b""
        return {"image": image if zlib.crc32(image) == crc else b"", "file": self._names[i]}
