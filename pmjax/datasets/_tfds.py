"""The only import of TensorFlow Datasets: a `Source` becomes a TFDS builder and is read back."""

import contextlib
import importlib.util
import itertools
import os
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tqdm import tqdm

from pmjax.datasets import SPLITS, Source
from pmjax.errors import UserError


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
        return {split: self._generate_examples(self._splits[split]) for split in SPLITS}

    def _generate_examples(self, records: Iterable[dict]):
        with progress(f"{self.name}: reading") as bar:
            for record in records:
                yield record
                bar.update()

    def _download_and_prepare(self, dl_manager, download_config):
        del download_config
        info = self._info()  # knows the temporary directory, which the caller renames
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=1 << 14, file_format="array_record"
        )
        writer.initialize_splits(list(SPLITS))
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


def progress(title: str, total: int | None = None) -> tqdm:
    """Returns a progress bar on stderr, which short work does not show."""
    interval = 0.2 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, desc=title, file=sys.stderr, delay=1, leave=False,
                mininterval=interval, miniters=1)  # fmt: skip


def prepare(name: str, source: Source, data_dir: Path) -> dict[str, Sequence[dict]]:
    """Prepares a data set with TFDS and returns its splits, images still encoded.

    Args:
        name: of the data set.
        source: what it is made of.
        data_dir: for the files of TFDS; a stock set lies in TFDS's own directory instead.
    """
    if source.stock:
        builder = _stock(name, source)
    else:
        tfds.disable_progress_bar()
        builder = Generated(
            name=name, version=source.version, splits=source.records(), data_dir=data_dir
        )
        with open(os.devnull, "w") as null, contextlib.redirect_stdout(null):
            builder.download_and_prepare(file_format="array_record")
    return {split: _read(builder, split) for split in SPLITS}


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


def _read(builder: tfds.core.DatasetBuilder, split: str) -> Sequence[dict]:
    """Returns the records of a split, in whichever format they were prepared."""
    raw = {"image": tfds.decode.SkipDecoding()} if "image" in builder.info.features else None
    formats = {f.value for f in builder.info.available_file_formats()}
    if formats & {"array_record", "parquet"}:
        return builder.as_data_source(split, decoders=raw)
    return [
        builder.info.features.deserialize_example_np(record, decoders=raw)
        for path in builder.info.splits[split].filepaths
        for record in _tfrecords(Path(path))
    ]


def _tfrecords(path: Path) -> Iterable[bytes]:
    """Yields the records of a TFRecord file, TFDS's default format, without TensorFlow.

    Each is its length as uint64, a checksum of that, the bytes, and a checksum of those.
    """
    with path.open("rb") as file:
        while header := file.read(12):
            (length,) = struct.unpack("<Q", header[:8])
            record = file.read(length)
            if len(record) < length or len(file.read(4)) < 4:
                raise UserError(f"{path} is truncated: delete its directory and prepare it again.")
            yield record
