"""Prepares small sets in the format of TensorFlow Datasets, without TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


class Generated(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes {split: records with 'image' and 'label'}; the default writer needs TensorFlow."""

    def __init__(self, *, name, version, splits, data_dir):
        self.name, self.VERSION = name, tfds.core.Version(version)
        self._splits = splits
        super().__init__(data_dir=data_dir)

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, None)),
            "label": tfds.features.Scalar(np.int64),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="A small set for tests.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        return self._splits

    def _generate_examples(self):
        raise NotImplementedError("records are written as they are")

    def _download_and_prepare(self, dl_manager, download_config):
        info = self._info()  # of the temporary directory, which the caller renames
        writer = tfds.core.SequentialWriter(
            info, max_examples_per_shard=1 << 14, file_format="array_record"
        )
        writer.initialize_splits(list(self._splits))
        writer.add_examples(self._splits)
        writer.close_all()
        self.info.set_splits(info.splits)


def png(array):
    """Encodes uint8 [H, W] or [H, W, 3] without loss."""
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()
