"""Reads the data sets of TensorFlow Datasets, without TensorFlow."""

import contextlib
import functools
import importlib.util
import os
import struct
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from pmjax import paths
from pmjax.datasets.base import Source
from pmjax.errors import UserError


def prepared(name: str, source: Source) -> dict[str, Sequence[dict]]:
    """Returns the splits of a stock data set, with encoded images; TFDS prepares it if needed."""
    builder = tfds.builder(f"{source.stock}:{source.version}", data_dir=stock_dir())
    if not (Path(builder.data_dir) / "dataset_info.json").exists():
        _prepare(builder, name)
    if missing := [split for split in source.splits if split not in builder.info.splits]:
        raise UserError(
            f"{builder.data_dir} lacks the split '{missing[0]}' of data set '{name}': it is "
            "incomplete. Delete it and prepare it again."
        )
    return {split: _Prepared(str(builder.data_dir), split) for split in source.splits}


def registered(stock: str) -> dict[str, tuple[int, str]]:
    """Returns {name: (bytes, sha256)} of the official files of a stock data set."""
    infos = tfds.builder_cls(stock).url_infos.values()
    return {info.filename: (int(info.size), info.checksum) for info in infos}


def stock_dir() -> Path:
    """Returns the directory of TFDS's own data sets."""
    path = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return paths.local(path, variable="TFDS_DATA_DIR")


def _prepare(builder: tfds.core.DatasetBuilder, name: str) -> None:
    if importlib.util.find_spec("tensorflow") is None:
        raise UserError(
            f"Data set '{name}' is not in {stock_dir()}, and preparing it needs TensorFlow once: "
            'pip install "pmjax[prepare]". If you have its files, set manual_dir '
            "(--config.data.manual_dir) to their directory instead."
        )
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(
                file_format="array_record",
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except Exception as e:  # from the network, checksums or TensorFlow
        raise UserError(
            f"TFDS could not prepare data set '{name}' in {stock_dir()}: {e}. If you have its "
            "files, set manual_dir (--config.data.manual_dir) to their directory."
        ) from e


class _Prepared(Sequence):
    """The records of a prepared split in any supported format; it pickles as a path."""

    def __init__(self, data_dir: str, split: str):
        self._data_dir, self._split = data_dir, split

    def __reduce__(self):
        return _Prepared, (self._data_dir, self._split)

    @functools.cached_property
    def _features(self) -> tfds.features.FeaturesDict:
        """The fields in use: CelebA's records have fifty more."""
        features = tfds.builder_from_directory(self._data_dir).info.features
        used = [key for key in ("image", "label") if key in features]
        return tfds.features.FeaturesDict({key: features[key] for key in used})

    @functools.cached_property
    def _raw(self) -> Sequence[bytes]:
        builder = tfds.builder_from_directory(self._data_dir)
        formats = {f.value for f in builder.info.available_file_formats()}
        if "array_record" in formats:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            return builder.as_data_source(self._split, deserialize_method=raw)
        if "tfrecord" in formats:
            return _TFRecords([Path(p) for p in builder.info.splits[self._split].filepaths])
        raise UserError(
            f"{self._data_dir} was prepared as {', '.join(sorted(formats))}; only array_record and "
            "tfrecord are supported. Delete it and prepare it again."
        )

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, i: int) -> dict:  # type: ignore[override]
        encoded = {"image": tfds.decode.SkipDecoding()}
        return self._features.deserialize_example_np(self._raw[i], decoders=encoded)


class _TFRecords(Sequence):
    """Reads TFRecord files, TFDS's default format, without TensorFlow.

    A record is its length as uint64, a checksum of the length, the bytes and a checksum of them.
    """

    def __init__(self, files: Sequence[Path]):
        self._spans = [span for file in files for span in self._scan(file)]

    @staticmethod
    def _scan(path: Path) -> Iterator[tuple[Path, int, int]]:
        with path.open("rb") as file:
            end, start = path.stat().st_size, 0
            while header := file.read(12):
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else end
                if (next_start := start + 12 + length + 4) > end:
                    raise UserError(
                        f"{path} is truncated: delete its directory and prepare it again."
                    )
                yield path, start + 12, length
                start = file.seek(next_start)

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, i: int) -> bytes:  # type: ignore[override]
        path, start, length = self._spans[i]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
