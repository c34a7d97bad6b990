"""The only import of TensorFlow Datasets: a `Source` becomes a TFDS builder and is read back."""

import contextlib
import functools
import importlib.util
import itertools
import os
import struct
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from pmjax.datasets.base import Source
from pmjax.errors import UserError
from pmjax.reporting.progress import progress


class Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder over the records of a `Source`, which needs no TensorFlow.

    The metadata that TFDS wants as files beside a builder are given to `DatasetInfo` directly, so
    that a data set stays one file. The records are written in their order by TFDS's
    `SequentialWriter`: its default writer needs TensorFlow beyond 1 GB.
    """

    def __init__(self, *, name: str, version: str, splits: Mapping[str, Iterable], data_dir: Path):
        """Takes the features from the first training record."""
        self.name = name
        self.VERSION = tfds.core.Version(version)
        train = iter(splits["train"])
        self._first = next(train)
        self._splits = {**splits, "train": itertools.chain([self._first], train)}
        super().__init__(data_dir=data_dir)

    def _info(self) -> tfds.core.DatasetInfo:
        features = {key: _feature(key, value) for key, value in self._first.items()}
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The data set '{self.name}' of pmjax.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(rows) for split, rows in self._splits.items()}

    def _generate_examples(self, records: Iterable[dict]):
        with progress(f"{self.name}: reading", unit="") as bar:
            for record in records:
                yield record
                bar.update()

    def _download_and_prepare(self, dl_manager, download_config):
        del download_config
        info = self._info()  # knows the temporary directory, which the caller renames
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=1 << 14, file_format="array_record"
        )
        writer.initialize_splits(list(self._splits))
        for split, records in self._split_generators(dl_manager).items():
            writer.add_examples({split: records})
        writer.close_all()
        self.info.set_splits(info.splits)


def _feature(key: str, value):
    """Returns the TFDS feature of an entry of a record."""
    if key == "image":
        return tfds.features.Image(shape=(None, None, None))
    if key == "point":
        return tfds.features.Tensor(shape=value.shape, dtype=np.float32)
    if key == "file":
        return tfds.features.Text()
    return tfds.features.Scalar(np.float32 if isinstance(value, float) else np.int64)


def prepare(
    name: str, source: Source, splits: Mapping[str, Iterable[dict]] | None, data_dir: Path
) -> dict[str, Sequence[dict]]:
    """Prepares a data set with TFDS and returns its splits, images still encoded.

    Args:
        name: of the data set.
        source: what it is made of.
        splits: the records of each split, or None for a stock set.
        data_dir: for the files of TFDS; a stock set lies in TFDS's own directory instead.
    """
    if splits is None:
        builder = _stock(name, source)
    else:
        tfds.disable_progress_bar()
        builder = Generated(name=name, version=source.version, splits=splits, data_dir=data_dir)
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            builder.download_and_prepare(file_format="array_record")
    missing = [split for split in source.splits if split not in builder.info.splits]
    if missing:
        raise UserError(
            f"{builder.data_dir} lacks the split '{missing[0]}' of data set '{name}': it is "
            "incomplete. Delete it and prepare it again."
        )
    return {split: _Prepared(str(builder.data_dir), split) for split in source.splits}


def registered(stock: str) -> dict[str, tuple[int, str]]:
    """Returns the size in bytes and the sha256 of each official file of a stock set, by name."""
    infos = tfds.builder_cls(stock).url_infos.values()
    return {info.filename: (int(info.size), info.checksum) for info in infos}


def stock_dir() -> Path:
    """Returns the directory in which TFDS keeps its own sets."""
    return Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


def _stock(name: str, source: Source) -> tfds.core.DatasetBuilder:
    """Returns the prepared builder of a set that TFDS has."""
    builder = tfds.builder(f"{source.stock}:{source.version}", data_dir=stock_dir())
    if (Path(builder.data_dir) / "dataset_info.json").exists():
        return builder
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
    except Exception as e:  # of the network, of checksums, of TensorFlow
        raise UserError(
            f"TFDS could not prepare data set '{name}' in {stock_dir()}: {e}. If you have its "
            "files, set manual_dir (--config.data.manual_dir) to their directory."
        ) from e
    return builder


class _Prepared(Sequence):
    """The records of a prepared split, in whichever format; pickled, it is only a path."""

    def __init__(self, data_dir: str, split: str):
        self._data_dir, self._split = data_dir, split

    def __reduce__(self):
        return _Prepared, (self._data_dir, self._split)

    @functools.cached_property
    def _builder(self) -> tfds.core.DatasetBuilder:
        return tfds.builder_from_directory(self._data_dir)

    @functools.cached_property
    def _features(self) -> tfds.features.FeaturesDict:
        """What is used of each record: CelebA's have fifty entries more."""
        all_of_them = self._builder.info.features
        used = [key for key in ("image", "point", "label", "file") if key in all_of_them]
        return tfds.features.FeaturesDict({key: all_of_them[key] for key in used})

    @functools.cached_property
    def _raw(self) -> Sequence[bytes]:
        info = self._builder.info
        formats = {f.value for f in info.available_file_formats()}
        if "array_record" in formats:
            raw = tfds.decode.DeserializeMethod.RAW_BYTES
            return self._builder.as_data_source(self._split, deserialize_method=raw)
        if "tfrecord" in formats:
            return _TFRecords([Path(p) for p in info.splits[self._split].filepaths])
        raise UserError(
            f"{self._data_dir} was prepared as {', '.join(sorted(formats))}; array_record and "
            "tfrecord are read. Delete it and prepare it again."
        )

    def __len__(self) -> int:
        return len(self._raw)

    def __getitem__(self, i: int) -> dict:
        images = {"image": tfds.decode.SkipDecoding()} if "image" in self._features else None
        return self._features.deserialize_example_np(self._raw[i], decoders=images)


class _TFRecords(Sequence):
    """The records of TFRecord files, TFDS's default format, without TensorFlow.

    Each is its length as uint64, a checksum of that, the bytes, and a checksum of those.
    """

    def __init__(self, files: Sequence[Path]):
        self._places = [place for file in files for place in self._scan(file)]

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
        return len(self._places)

    def __getitem__(self, i: int) -> bytes:
        path, start, length = self._places[i]
        with path.open("rb") as file:
            file.seek(start)
            return file.read(length)
