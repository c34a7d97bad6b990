"""CelebA and CIFAR-10 from official archives, here small ones in the official layout."""

import gzip
import hashlib
import io
import os
import pickle
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from pmjax.datasets import celeba, cifar10, loader, tfds_builder
from pmjax.errors import UserError
from tests.datasets.stock_set import Generated

NUMBERS = (6, 3, 4)  # of images in each split of the small CelebA
PARTITION, ZIP, FOLDER = "list_eval_partition.txt", "img_align_celeba.zip", "img_align_celeba"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    """Keeps the caches of the user out of it."""
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))


# CelebA.


def photograph(number):
    """The bytes of an aligned face: a JPEG of 178 x 218 whose brightness tells its number."""
    random = np.random.default_rng(number)
    noise = random.integers(0, 40, (28, 23, 3)).astype(np.uint8)
    image = Image.fromarray(noise + np.uint8(10 * number)).resize((178, 218))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


def partition(numbers):
    """The text of list_eval_partition.txt, whose lines end as in the official one."""
    which = [split for split, number in enumerate(numbers) for _ in range(number)]
    return "".join(f"{i:06}.jpg {split}\r\n" for i, split in enumerate(which, 1)).encode()


def write_zip(file, names, compression=zipfile.ZIP_STORED):
    """Packs photographs as the official archive does, with an entry for the directory."""
    with zipfile.ZipFile(file, "w", compression) as archive:
        archive.writestr(f"{FOLDER}/", b"")
        for name in names:
            archive.writestr(f"{FOLDER}/{name}", photograph(int(name[:6])))


NAMES = [f"{i:06}.jpg" for i in range(1, sum(NUMBERS) + 1)]


@pytest.fixture
def faces(tmp_path):
    """A directory with a small CelebA."""
    folder = tmp_path / "faces"
    folder.mkdir()
    (folder / PARTITION).write_bytes(partition(NUMBERS))
    write_zip(folder / ZIP, NAMES)
    return folder


def load(folder, split="train", **kwargs):
    """Loads a split of the small CelebA, whose sums are not the registered ones."""
    return loader.load("celeba", split, manual_dir=folder, **{"verify": False, **kwargs})


def register(monkeypatch, folder):
    """Registers the files of a directory as the official ones."""
    sums = {
        name: ((folder / name).stat().st_size, hashlib.sha256((folder / name).read_bytes()))
        for name in (PARTITION, ZIP)
    }
    sums = {name: (size, digest.hexdigest()) for name, (size, digest) in sums.items()}
    monkeypatch.setattr(tfds_builder, "registered", lambda stock: sums)


def test_the_official_list_has_the_standard_splits(tmp_path):
    content = partition((162770, 19867, 19962))
    size, sha256 = tfds_builder.registered("celeb_a")[PARTITION]
    assert (len(content), hashlib.sha256(content).hexdigest()) == (size, sha256)
    (tmp_path / PARTITION).write_bytes(content)
    splits = celeba.read_partition(tmp_path / PARTITION)
    assert list(splits) == ["train", "validation", "test"]
    assert [len(names) for names in splits.values()] == [162770, 19867, 19962]
    assert len(set().union(*splits.values())) == 202599


def test_the_registered_archive_is_the_one_of_celeba():
    size, sha256 = tfds_builder.registered("celeb_a")[ZIP]
    assert size == 1443490838 and sha256.startswith("46fb8944")


@pytest.mark.parametrize("size", [64, 128, 178])
def test_faces_are_rows_20_to_198_resized_with_antialiasing(faces, size):
    train = load(faces, size=size)
    assert train.data.shape == (6, size, size, 3) and train.labels is None
    for i in range(6):
        with Image.open(io.BytesIO(photograph(i + 1))) as image:
            rows = Image.fromarray(np.asarray(image)[20:198])
        expected = np.asarray(rows.resize((size, size), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(train.data[i], expected)


def test_splits_follow_the_list_and_never_mix(faces):
    # Out of order, and against the order of the archive.
    lines = (faces / PARTITION).read_text().splitlines()[::-1]
    (faces / PARTITION).write_text("\n".join(lines) + "\n")
    found = {
        split: [round((x.mean() - 19.5) / 10) for x in load(faces, split).data]
        for split in ("train", "validation", "test")
    }
    assert found == {
        "train": [6, 5, 4, 3, 2, 1],
        "validation": [9, 8, 7],
        "test": [13, 12, 11, 10],
    }


def test_the_unpacked_directory_and_any_packing_give_the_same_arrays(faces, tmp_path):
    stored = load(faces, "test").fingerprint
    write_zip(faces / ZIP, NAMES[::-1], zipfile.ZIP_DEFLATED)
    assert load(faces, "test", cache_dir=tmp_path / "deflated").fingerprint == stored
    with zipfile.ZipFile(faces / ZIP) as archive:
        archive.extractall(faces)
    (faces / ZIP).unlink()
    assert load(faces, "test", cache_dir=tmp_path / "unpacked").fingerprint == stored


def test_the_list_of_an_unpacked_directory_is_verified_by_default(faces):
    with zipfile.ZipFile(faces / ZIP) as archive:
        archive.extractall(faces)
    (faces / ZIP).unlink()
    with pytest.raises(UserError, match=f"{PARTITION} is truncated: 182 bytes, 2836386 expected"):
        load(faces, verify=True)


@pytest.mark.parametrize(
    ("place", "unpacked"),
    [("Img", ""), ("celeba", FOLDER), ("", f"{FOLDER}/{FOLDER}"), ("x/y", f"{FOLDER}/{FOLDER}")],
)
def test_the_files_are_found_where_they_are_unpacked(faces, place, unpacked, tmp_path):
    expected = load(faces, "test", cache_dir=tmp_path / "plain").fingerprint
    root = tmp_path / "root"
    (root / place / "Eval").mkdir(parents=True)  # as in CelebA's Drive
    (faces / PARTITION).rename(root / place / "Eval" / PARTITION)
    if unpacked:
        with zipfile.ZipFile(faces / ZIP) as archive:
            archive.extractall(root / place / unpacked / "..")
        (root / place / unpacked / "._000001.jpg").write_bytes(b"resource")
    else:
        (faces / ZIP).rename(root / place / ZIP)
    assert load(root, "test").fingerprint == expected


def test_the_list_as_a_table_is_read_and_verified(faces, monkeypatch):
    register(monkeypatch, faces)
    expected = load(faces, "test", verify=True).fingerprint
    lines = (faces / PARTITION).read_text().replace(" ", ",").splitlines()
    (faces / PARTITION).unlink()
    table = faces / "list_eval_partition.csv"
    table.write_text("\n".join(["image_id,partition", *lines, ""]), encoding="utf-8-sig")
    for verify in (False, True):
        place = faces / str(verify)
        assert load(faces, "test", verify=verify, cache_dir=place).fingerprint == expected
    table.write_text(table.read_text().replace("000013.jpg,2", "000013.jpg,1"))
    with pytest.raises(UserError, match="partition.csv is damaged or another version"):
        load(faces, "test", verify=True, cache_dir=faces / "other")


def test_what_manual_dir_holds_instead_is_listed(faces, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "archive.zip").touch()
    with pytest.raises(UserError, match=f"no {PARTITION}, nor have .*It holds archive.zip. Get"):
        load(tmp_path / "other")


def test_verified_arrays_are_found_again_without_the_archive(faces, monkeypatch):
    register(monkeypatch, faces)
    first = load(faces, verify=True)
    (faces / ZIP).unlink()
    assert load(faces, verify=True).fingerprint == first.fingerprint
    assert load(faces, "validation", verify=True).data.shape == (3, 64, 64, 3)
    with pytest.raises(UserError, match=f"has no {ZIP} and no directory"):
        load(faces)


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_archive_is_named_with_where_to_get_it(faces, verify, monkeypatch):
    register(monkeypatch, faces)
    (faces / ZIP).unlink()
    with pytest.raises(UserError, match=f"has no {ZIP} and no directory {FOLDER}.*mmlab.ie.cuhk"):
        load(faces, verify=verify)


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_list_is_named(faces, verify):
    (faces / PARTITION).unlink()
    with pytest.raises(UserError, match=f"manual_dir.* has no {PARTITION}.*mmlab.ie.cuhk"):
        load(faces, verify=verify)


def test_an_archive_of_the_wrong_size_is_reported_with_both_sizes(faces, monkeypatch):
    register(monkeypatch, faces)
    size = (faces / ZIP).stat().st_size
    os.truncate(faces / ZIP, size - 1)
    with pytest.raises(UserError) as e:
        load(faces, verify=True)
    for text in (f"{ZIP} is truncated: {size - 1} bytes, {size} expected", "mmlab", "verify=false"):
        assert text in str(e.value)


def test_an_archive_of_the_wrong_checksum_is_reported_with_both_sums(faces, monkeypatch):
    register(monkeypatch, faces)
    good = hashlib.sha256((faces / ZIP).read_bytes()).hexdigest()
    content = bytearray((faces / ZIP).read_bytes())
    content[500] ^= 1
    (faces / ZIP).write_bytes(content)
    with pytest.raises(UserError) as e:
        load(faces, verify=True)
    bad = hashlib.sha256(content).hexdigest()
    for text in (ZIP, f"sha256 {bad}, {good} expected", "mmlab", "verify=false"):
        assert text in str(e.value)


@pytest.mark.parametrize("keep", [0, 100, -1000])
def test_a_truncated_archive_is_reported_without_verification_too(faces, keep):
    (faces / ZIP).write_bytes((faces / ZIP).read_bytes()[:keep])
    with pytest.raises(UserError, match=f"{ZIP} cannot be read.*truncated.*mmlab"):
        load(faces)


def test_listed_images_that_the_archive_lacks_are_reported(faces):
    write_zip(faces / ZIP, [name for name in NAMES if name not in ("000003.jpg", "000008.jpg")])
    with pytest.raises(
        UserError, match=f"{ZIP} lacks 2 images, such as 000003.jpg, that {PARTITION}"
    ):
        load(faces)


def test_images_of_the_archive_that_are_not_listed_are_reported(faces):
    write_zip(faces / ZIP, [*NAMES, "000014.jpg"])
    with pytest.raises(UserError, match=f"does not list 1 images, such as 000014.jpg, that {ZIP}"):
        load(faces)


def test_images_that_the_directory_lacks_are_reported(faces):
    with zipfile.ZipFile(faces / ZIP) as archive:
        archive.extractall(faces)
    (faces / ZIP).unlink()
    (faces / FOLDER / "000011.jpg").unlink()
    with pytest.raises(UserError, match=f"{FOLDER} lacks 1 images, such as 000011.jpg"):
        load(faces)


@pytest.mark.parametrize("line", ["000014.jpg 3", "000014.jpg", "000001.jpg 2", "000014.jpg 1 1"])
def test_a_wrong_line_of_the_list_is_shown(faces, line):
    with (faces / PARTITION).open("a") as file:
        file.write(f"{line}\r\n")
    with pytest.raises(UserError, match=f"{PARTITION}, line 14: '{line}' is not"):
        load(faces)


def test_a_split_without_images_is_reported(faces):
    (faces / PARTITION).write_bytes(partition((9, 0, 4)))
    with pytest.raises(UserError, match="lists no image of the validation split"):
        load(faces)


def test_a_damaged_image_within_the_archive_is_named(faces):
    with zipfile.ZipFile(faces / ZIP) as archive:
        place = archive.getinfo(f"{FOLDER}/000007.jpg").header_offset + 3000
    content = bytearray((faces / ZIP).read_bytes())
    content[place] ^= 255
    (faces / ZIP).write_bytes(content)
    with pytest.raises(UserError, match=f"1 of its files \\({FOLDER}/000007.jpg: empty or not rea"):
        load(faces)
    assert len(load(faces, "validation", skip_broken=True).data) == 2


def test_an_encrypted_or_oddly_compressed_archive_is_refused(faces):
    write_zip(faces / ZIP, NAMES, zipfile.ZIP_LZMA)
    with pytest.raises(UserError, match="encrypted or of an unusual compression"):
        load(faces)


def test_the_metadata_that_macos_adds_to_an_archive_is_ignored(faces):
    with zipfile.ZipFile(faces / ZIP, "a") as archive:
        archive.writestr("__MACOSX/img_align_celeba/._000001.jpg", b"resource")
        archive.writestr(f"{FOLDER}/.DS_Store", b"")
    assert len(load(faces).data) == 6


class Stock(Generated, skip_registration=True):
    """Writes records with all the features that TFDS gives to CelebA."""

    def _info(self):
        features = tfds.builder("celeb_a", data_dir="/nowhere").info.features
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)


def test_a_prepared_copy_of_tfds_is_read_without_its_other_features(faces, tmp_path):
    features = tfds.builder("celeb_a", data_dir="/nowhere").info.features
    rest = {
        kind: {name: type(name != "")(0) for name in features[kind]}
        for kind in ("landmarks", "attributes", "identity")
    }
    starts = np.cumsum((1, *NUMBERS))
    splits = {
        split: [{"image": photograph(i), **rest} for i in range(start, start + number)]
        for split, start, number in zip(celeba.SPLITS, starts, NUMBERS, strict=False)
    }
    version = loader._source("celeba", path=None, manual_dir=None, seed=0).version
    builder = Stock(name="celeb_a", version=version, splits=splits, data_dir=tmp_path / "tfds")
    builder.download_and_prepare(file_format="array_record")
    for split in celeba.SPLITS:
        prepared = loader.load("celeba", split)
        assert prepared.fingerprint == load(faces, split).fingerprint


# CIFAR-10.


def old_string(text):
    """Pickles a string as Python 2 did."""
    short = len(text) < 256
    return (b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<i", len(text))) + text


def old_pickle(images, labels, *, kind=b"u1", label=b"training batch 1 of 5"):
    """Pickles a batch byte for byte as the official files are, with protocol 2 of Python 2."""
    values = images.transpose(0, 3, 1, 2).tobytes()
    numbers = b"".join(b"K" + bytes([n]) for n in labels)
    names = b"".join(old_string(b"image_%d.png" % i) for i in range(len(images)))
    shape = b"M" + struct.pack("<H", len(images)) + b"M\x00\x0c\x86"
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + shape
        + b"cnumpy\ndtype\n"
        + old_string(kind)
        + b"K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + old_string(values)
        + b"tb"
    )
    return (
        b"\x80\x02}("
        + old_string(b"batch_label") + old_string(label)
        + old_string(b"labels") + b"](" + numbers + b"e"
        + old_string(b"data") + array
        + old_string(b"filenames") + b"](" + names + b"e"
        + b"u."
    )  # fmt: skip


IMAGES = np.random.default_rng(1).integers(0, 256, (24, 32, 32, 3)).astype(np.uint8)
LABELS = np.arange(24) * 7 % 10
BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def batches():
    """Six batches of four images."""
    return {
        name: old_pickle(IMAGES[4 * i : 4 * i + 4], LABELS[4 * i : 4 * i + 4])
        for i, name in enumerate(BATCHES)
    }


def write_tar(folder, contents):
    """Packs batches as the official archive is."""
    with tarfile.open(folder / cifar10.ARCHIVE, "w:gz") as tar:
        for name, content in {"batches.meta": b"", "readme.html": b"", **contents}.items():
            info = tarfile.TarInfo(f"{cifar10.FOLDER}/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.fixture
def cifar(tmp_path):
    """A directory with a small CIFAR-10."""
    folder = tmp_path / "cifar"
    folder.mkdir()
    write_tar(folder, batches())
    return folder


def load_cifar(folder, split="train", **kwargs):
    """Loads a split of the small CIFAR-10."""
    return loader.load("cifar10", split, manual_dir=folder, **{"verify": False, **kwargs})


def test_numpy_reads_the_pickles_of_these_tests():
    batch = pickle.loads(batches()["test_batch"], encoding="bytes")
    np.testing.assert_array_equal(batch[b"data"].reshape(4, 3, 32, 32)[:, 2], IMAGES[20:, :, :, 2])


def test_cifar_images_and_labels_come_out_in_order(cifar):
    train, test = load_cifar(cifar), load_cifar(cifar, "test")
    np.testing.assert_array_equal(train.data, IMAGES[:20])
    np.testing.assert_array_equal(test.data, IMAGES[20:])
    assert train.labels.tolist() == LABELS[:20].tolist()
    assert test.labels.tolist() == LABELS[20:].tolist()
    assert sorted(p.name for p in cifar.iterdir()) == [cifar10.ARCHIVE]


def test_the_unpacked_batches_give_the_same_arrays(cifar):
    first = load_cifar(cifar)
    (cifar / cifar10.FOLDER).mkdir()
    for name, content in batches().items():
        (cifar / cifar10.FOLDER / name).write_bytes(content)
    (cifar / cifar10.ARCHIVE).unlink()
    assert load_cifar(cifar).fingerprint == first.fingerprint
    with pytest.raises(UserError, match=r"data_batch_1 is not.*\(4, 3072\) with 4 labels"):
        load_cifar(cifar, verify=True)
    (cifar / cifar10.FOLDER / "data_batch_3").unlink()
    with pytest.raises(UserError, match="has no data_batch_3"):
        load_cifar(cifar)


@pytest.mark.parametrize(
    "place", ["cifar-10-batches-py", "x/cifar-10-batches-py/cifar-10-batches-py", "", "cifar10"]
)
def test_unpacked_batches_are_found_in_any_folder(cifar, place, tmp_path):
    expected = load_cifar(cifar).fingerprint
    folder = tmp_path / "root" / place
    folder.mkdir(parents=True)
    for name, content in batches().items():
        (folder / name).write_bytes(content)
    assert load_cifar(tmp_path / "root").fingerprint == expected


@pytest.mark.parametrize("name", ["cifar-10-batches-py.tar.gz", "cifar-10-python.tar"])
def test_archives_of_other_names_are_read(cifar, name, tmp_path):
    expected = load_cifar(cifar).fingerprint
    content = (cifar / cifar10.ARCHIVE).read_bytes()
    (tmp_path / "root" / "datasets").mkdir(parents=True)
    content = content if name.endswith("gz") else gzip.decompress(content)
    (tmp_path / "root" / "datasets" / name).write_bytes(content)
    assert load_cifar(tmp_path / "root").fingerprint == expected


def test_cifar_is_verified_by_default(cifar, monkeypatch):
    content = (cifar / cifar10.ARCHIVE).read_bytes()
    with pytest.raises(UserError, match=f"truncated: {len(content)} bytes, 170498071 expected"):
        load_cifar(cifar, verify=True)
    monkeypatch.setattr(cifar10, "SIZE", len(content))
    with pytest.raises(UserError, match="sha256 .*, 6d958be07.* expected.*cs.toronto.edu"):
        load_cifar(cifar, verify=True)
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(cifar10, "EACH", 4)
    np.testing.assert_array_equal(load_cifar(cifar, verify=True).data, IMAGES[:20])
    shutil.rmtree(cifar)
    assert len(load_cifar(cifar, "test", verify=True).data) == 4


@pytest.mark.parametrize("verify", [True, False])
def test_a_missing_cifar_archive_is_named(tmp_path, verify):
    with pytest.raises(
        UserError, match="has no cifar-10-python.tar.gz and no directory cifar-10-b"
    ):
        load_cifar(tmp_path, verify=verify)


@pytest.mark.parametrize("keep", [0, 50, 30000])
def test_a_truncated_cifar_archive_is_reported(cifar, keep):
    file = cifar / cifar10.ARCHIVE
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UserError, match="cifar-10-python.tar.gz cannot be read.*truncated"):
        load_cifar(cifar)


def test_a_batch_that_the_archive_lacks_is_named(cifar):
    write_tar(cifar, {k: v for k, v in batches().items() if k != "data_batch_4"})
    with pytest.raises(UserError, match="lacks cifar-10-batches-py/data_batch_4"):
        load_cifar(cifar)


class Evil:
    """Would run a command when it is unpickled."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_would_run_code_is_refused_and_not_run(cifar, tmp_path):
    evil = pickle.dumps({"data": Evil(f"touch {tmp_path}/run")}, protocol=2)
    write_tar(cifar, {**batches(), "data_batch_2": evil})
    with pytest.raises(UserError, match="data_batch_2 is not a batch.*it asks for posix.system"):
        load_cifar(cifar)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        pickle.dumps([1, 2]),
        pickle.dumps({b"labels": [1]}),
        batches()["test_batch"][:-2000],
        old_pickle(IMAGES[:4], [1, 2, 3]),
        old_pickle(IMAGES[:4], [1, 2, 3, 10]),
        old_pickle(IMAGES[:4], [1, 2, 3, 4], kind=b"O8"),
    ],
)
def test_damaged_batches_are_named(content):
    with pytest.raises(UserError, match="HERE is not a batch of CIFAR-10"):
        cifar10.read_batch(content, "HERE")
