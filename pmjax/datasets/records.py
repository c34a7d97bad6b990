"""Sequences of image records that pickle as paths and offsets, so that processes can share them."""

import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pmjax.errors import UserError


class DecodedImages(Sequence):
    """Images that are arrays already."""

    def __init__(self, images: np.ndarray, labels: np.ndarray):
        """Stores uint8 [N, H, W] or [N, H, W, 3] and numbers [N]."""
        self._images, self._labels = images, labels

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, i: int) -> dict:  # type: ignore[override]
        return {"image": self._images[i], "label": self._labels[i].item()}


class ImageFiles(Sequence):
    """Image files below a directory."""

    def __init__(self, folder: Path, names: Sequence[bytes], labels: Sequence[int] | None = None):
        self._folder, self._names, self._labels = folder, names, labels

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> dict:  # type: ignore[override]
        try:
            file = self._folder / os.fsdecode(self._names[i])
            image = file.read_bytes() if file.is_file() else b""  # a pipe would never end
        except OSError:
            image = b""  # reported with the other unreadable files
        record = {"image": image, "file": self._names[i]}
        return record if self._labels is None else {**record, "label": self._labels[i]}


MAX_BYTES = 1 << 30  # per image of an archive, decompressed; a larger one counts as damaged


class ZipMembers(Sequence):
    """Images in a zip archive, read at their offsets: reading its directory takes seconds.

    A damaged image reads as empty bytes, which are reported with the other unreadable files.
    """

    def __init__(self, file: Path, infos: Sequence[zipfile.ZipInfo]):
        """Stores the offsets of the images, from the entries of the archive's directory."""
        for info in infos:
            stored = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            if not stored or info.flag_bits & 1:
                raise UserError(
                    f"{file}: {info.filename} is encrypted or of an unusual compression. Create "
                    "the archive again with zip's defaults."
                )
        self._file = file
        self._names = [os.fsencode(info.filename) for info in infos]
        entries = [
            (i.header_offset, i.compress_size, min(i.file_size, MAX_BYTES), i.compress_type, i.CRC)
            for i in infos
        ]
        self._entries = np.array(entries, np.int64).reshape(-1, 5)

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, i: int) -> dict:  # type: ignore[override]
        start, length, size, compression, crc = self._entries[i].tolist()
        if start < 0:  # the directory is damaged
            return {"image": b"", "file": self._names[i]}
        with self._file.open("rb") as file:
            file.seek(start)
            header = file.read(30)
            name, extra = header[26:28], header[28:30]  # lengths; the directory may state others
            file.seek(sum(int.from_bytes(n, "little") for n in (name, extra)), os.SEEK_CUR)
            image = file.read(length)
        try:
            if compression == zipfile.ZIP_DEFLATED:  # no more than the directory states
                image = zlib.decompressobj(-15).decompress(image, max(1, size))
        except zlib.error:
            image = b""
        return {"image": image if zlib.crc32(image) == crc else b"", "file": self._names[i]}
