"""Configs, folders of images and archives made of anything: one message, or the right result.

PMJAX_FUZZ=1000 pytest tests/commands/test_faults_input.py takes that many cases of each kind.
"""

import contextlib
import gzip
import io
import json
import math
import os
import struct
import tarfile
import tempfile
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from pmjax import config, plugins
from pmjax.datasets import celeba, cifar10, digits, idx_files, image_codec, loader, records
from pmjax.errors import UserError

CASES = int(os.environ.get("PMJAX_FUZZ", "150"))
DIGITS = str(Path(__file__).parents[2] / "configs" / "digits.py")
fuzz = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@contextlib.contextmanager
def mistakes_are_told():
    """Lets a `UserError` pass that says something, and nothing else."""
    try:
        yield
    except UserError as error:
        assert len(str(error)) > 10
        assert "Traceback" not in str(error)


# Configs.

LOADED = config.load(DIGITS)
NAMES = sorted(config.flat(LOADED))
ODD = (
    "", "0", "-1", "1", "3", "1e400", "nan", "-inf", "1e-400", "9" * 400, "9" * 5000, "None",
    "True", "false", "[]", "()", "{}", "{[]: 1}", "{'a': {'b': 1}}", "[[[1]]]", "1,2", "1,", ",",
    "(" * 300, "-" * 100000, "'", "\x00", "\ud800", "é\n", "../../x", "$(id)", "__import__('os')",
    "1:0", "5:-1", "0:99999999999999999999", "²:1", "b'x'", "1j", "...", "lambda: 0",
)  # fmt: skip
CHOICES = sorted({n for p in ("methods", "priors", "nets", "metrics") for n in plugins.names(p)})
TEXTS = st.one_of(
    st.sampled_from(ODD),
    st.sampled_from(CHOICES),
    st.text(max_size=12),
    st.integers().map(str),
    st.floats().map(str),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
        max_leaves=5,
    ).map(repr),
)
KEYS = st.one_of(
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES).map(lambda n: n.rpartition(".")[0]),
    st.sampled_from(NAMES).map(lambda n: n + ".x"),
    st.sampled_from(NAMES).map(lambda n: n[:-1]),
    st.text(max_size=10),
)
VARIANTS = st.one_of(
    st.just(""),
    st.sampled_from([":author", ":paper,runlocal", ":", ":,", ":author,author", "::", ": paper"]),
    st.text(max_size=6).map(":".__add__),
)


def assert_sound(loaded):
    """Checks what a config that was taken must fulfil, by hand."""
    for name, value in config.flat(loaded).items():
        assert not isinstance(value, float) or math.isfinite(value), name
        assert type(value) is type(config.flat(LOADED).get(name, value)), name
    assert min(loaded.steps, loaded.log_every, loaded.checkpoint.keep, loaded.latent_dim) >= 1
    assert loaded.data.size >= 0 and loaded.data.batch_size >= 1
    assert loaded.optimizer.learning_rate >= 0 and 0 <= loaded.seed < 2**32


@fuzz
@given(VARIANTS, st.dictionaries(KEYS, TEXTS, min_size=1, max_size=3))
def test_a_config_of_anything_is_sound_or_refused(variant, overrides):
    with mistakes_are_told():
        assert_sound(config.load(DIGITS + variant, overrides))


@fuzz
@given(st.sampled_from(NAMES), st.sampled_from([None, -1, [], {}, "x", 1e999, True, [[1]], 2**80]))
def test_a_stored_config_of_anything_is_read_or_refused(name, value):
    stored = LOADED.copy_and_resolve_references().to_dict()
    *parents, last = name.split(".")
    part = stored
    for parent in parents:
        part = part[parent]
    part[last] = value
    with mistakes_are_told():
        config.read(Stored(stored))


class Stored:
    """A file of a config."""

    def __init__(self, values):
        self.text = json.dumps(values)

    def read_text(self):
        return self.text


@pytest.mark.parametrize(
    "override",
    [
        "steps=-1", "data.batch_size=0", "log_every=0", "checkpoint.keep=0", "checkpoint.every=0",
        "optimizer.learning_rate=nan", "optimizer.learning_rate=-1", "optimizer.b1=1",
        "steps_per_dispatch=0", "stage2.steps_per_dispatch=0", "stage2.devices=0", "devices=-1",
        "latent_dim=0", "data.size=-3", "seed=-1", "ema_decay=2", "ema_decay=inf", "profile=x",
        "profile=5:0", "method=", "nets=", "eval.metrics=nothing", "data.name=",
        "batch_norm.momentum=1.5", "optimizer.warmup=-1", "optimizer.clip=-1", "skip_nonfinite=-1",
        "method_args.omega1=nan", "data.device_budget_gb=-1", "eval.during=5", "parallel=",
    ],
)  # fmt: skip
def test_nonsense_is_found_before_anything_starts(override):
    name, _, text = override.partition("=")
    with pytest.raises(UserError) as error:
        config.load(DIGITS, {name: text})
    assert len(str(error.value).splitlines()) == 1


def test_a_config_file_that_is_no_python_is_named(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("def get_config(:\n")
    with pytest.raises(UserError, match=r"mine\.py cannot be read, line 1"):
        config.load(str(file))


# Single images. The oracle is arithmetic over the pixels that were written.

SIZES = st.sampled_from([(1, 1), (1, 9), (8, 8), (13, 7), (64, 48), (20000, 3)])
COLORS = st.tuples(*[st.integers(0, 255)] * 4)
FORMS = {  # mode -> formats that keep it exactly
    "1": ("PNG", "BMP", "TIFF"), "L": ("PNG", "BMP", "TIFF", "GIF", "WEBP"),
    "LA": ("PNG", "TIFF"), "P": ("PNG", "GIF"), "RGB": ("PNG", "BMP", "TIFF", "PPM", "TGA"),
    "RGBA": ("PNG", "TIFF", "TGA"), "CMYK": ("TIFF",), "YCbCr": ("TIFF",), "LAB": ("TIFF",),
    "I;16": ("PNG", "TIFF", "PPM"), "I": ("TIFF",), "F": ("TIFF",), "I;16B": ("TIFF",),
    "PA": ("TIFF",), "RGBX": ("TIFF",),
}  # fmt: skip
ROUNDING = {"YCbCr": 3, "LAB": 3, "RGBA": 1, "LA": 1, "PA": 1}  # of color spaces, and of blending


def picture(mode, size, color):
    """Returns an image of a mode in one color, and what it must look like: gray or RGB."""
    r, g, b, a = color
    over = lambda value: round(255 + (value - 255) * a / 255)  # noqa: E731
    match mode:
        case "1":
            return Image.new("1", size, 255 * (r > 127)), 255 * (r > 127)
        case "L":
            return Image.new("L", size, r), r
        case "LA":
            return Image.new("LA", size, (r, a)), over(r)
        case "P":
            image = Image.new("P", size, 3)
            image.putpalette([0] * 9 + [r, g, b])
            return image, (r, g, b)
        case "PA":
            image = Image.new("PA", size, (3, a))
            image.putpalette([0] * 9 + [r, g, b])
            return image, (over(r), over(g), over(b))
        case "RGBX":
            return Image.new("RGBX", size, (r, g, b, a)), (r, g, b)
        case "I;16B":
            return Image.new("I;16B", size, r * 257), r
        case "RGBA":
            return Image.new("RGBA", size, color), (over(r), over(g), over(b))
        case "CMYK":
            return Image.new("CMYK", size, (255 - r, 255 - g, 255 - b, 0)), (r, g, b)
        case "YCbCr":
            return Image.new("RGB", size, (r, g, b)).convert("YCbCr"), (r, g, b)
        case "LAB":
            linear = ((f + 16) / 116) ** 3 if (f := r * 100 / 255) > 8 else f / 903.3
            gray = 1.055 * linear ** (1 / 2.4) - 0.055 if linear > 0.0031308 else 12.92 * linear
            return Image.new("LAB", size, (r, 128, 128)), round(255 * gray)
        case "I;16":
            values = np.full(size[::-1], r * 257, np.uint16)
            return Image.fromarray(values), r
        case "I":
            return Image.fromarray(np.full(size[::-1], r * 257, np.int32)), r
        case "F":
            return Image.fromarray(np.full(size[::-1], r / 255, np.float32)), r
    return Image.new("RGB", size, (r, g, b)), (r, g, b)


def encoded(image, kind, **options):
    """Returns the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@st.composite
def files(draw):
    """Draws the bytes of an image, what it must look like, and how far rounding may take it."""
    mode = draw(st.sampled_from(sorted(FORMS)))
    kind, size = draw(st.sampled_from(FORMS[mode])), draw(SIZES)
    if kind == "WEBP":
        size = tuple(min(side, 16383) for side in size)  # the most that its header can hold
    image, expected = picture(mode, size, draw(COLORS))
    options = {"lossless": True} if kind == "WEBP" else {}
    if draw(st.booleans()) and kind in ("PNG", "TIFF") and mode in ("L", "RGB"):
        exif = Image.Exif()
        exif[0x0112] = draw(st.integers(1, 8))
        options["exif"] = exif
    if draw(st.booleans()) and kind in ("GIF", "PNG") and mode in ("L", "P"):
        options |= {"save_all": True, "append_images": [Image.new("L", image.size, 77)]}
    return encoded(image, kind, **options), expected, ROUNDING.get(mode, 0)


@fuzz
@given(files())
def test_an_image_of_any_mode_is_decoded_to_the_drawn_values(file):
    data, expected, rounding = file
    result = image_codec.decode(data, 8)
    assert result.shape[:2] == (8, 8)
    assert np.abs(result.astype(int) - expected).max() <= rounding


# A picture of which every part differs from the others, so that a lost part shows.
PHOTO = Image.fromarray(np.random.default_rng(0).integers(40, 216, (48, 48, 3), np.uint8))
KINDS = {"JPEG": {"quality": 95}, "PNG": {}, "GIF": {}, "BMP": {}, "TIFF": {}, "PPM": {},
         "WEBP": {"lossless": True}, "TGA": {}}  # fmt: skip
WHOLE = {kind: encoded(PHOTO, kind, **options) for kind, options in KINDS.items()}
WANTED = {kind: image_codec.decode(data, 48).astype(int) for kind, data in WHOLE.items()}


@fuzz
@given(st.sampled_from(sorted(KINDS)), st.floats(0, 1))
def test_a_truncated_image_is_refused_or_whole(kind, share):
    whole = WHOLE[kind]
    try:
        result = image_codec.decode(whole[: int(share * len(whole))], 48)
    except ValueError:
        return
    np.testing.assert_array_equal(result, WANTED[kind])


@fuzz
@given(
    st.sampled_from(sorted(KINDS)),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=9),
)
def test_a_damaged_image_raises_nothing_but_a_reason(kind, changes):
    data = bytearray(WHOLE[kind])
    for place, value in changes:
        data[int(place * len(data))] = value
    with contextlib.suppress(ValueError), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert image_codec.decode(bytes(data), 16).shape[:2] == (16, 16)


@fuzz
@given(st.binary(max_size=200))
def test_a_renamed_file_of_anything_raises_nothing_but_a_reason(data):
    with contextlib.suppress(ValueError):
        assert image_codec.decode(data, 4).dtype == np.uint8


def test_a_small_file_that_unpacks_to_much_is_refused():
    bomb = bytearray(encoded(Image.new("1", (8, 8)), "PNG"))
    bomb[16:24] = struct.pack(">II", 30000, 30000)
    bomb[29:33] = struct.pack(">I", zlib.crc32(bomb[12:29]))
    with pytest.raises(ValueError, match="million pixels"):
        image_codec.decode(bytes(bomb), 8)


# Folders.

GOOD = encoded(Image.new("L", (6, 6), 200), "PNG")


def broken_things(folder):
    """Fills a folder with what is no image; returns the names that have to be listed."""
    (folder / "empty.png").write_bytes(b"")
    (folder / "cut.png").write_bytes(WHOLE["PNG"][:500])
    (folder / "text with space.jpg").write_text("hello")
    (folder / "line\nbreak.png").write_bytes(b"\x89PNG\r\n")
    (folder / "nowhere.png").symlink_to("missing")
    (folder / "circle.png").symlink_to("circle.png")
    os.mkfifo(folder / "pipe.png")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.gif")).write_bytes(b"GIF89a")
    return ["empty.png", "cut.png", "text with space.jpg", "nowhere.png", "circle.png", "pipe.png"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of good images under odd names, with a loop and directories named as images."""
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "pictures"
    (folder / "a.png" / "deeper.jpg").mkdir(parents=True)
    (folder / "a.png" / "deeper.jpg" / "in.png").write_bytes(GOOD)
    (folder / "loop").symlink_to(folder)
    for name in (b"a b.png", b"new\nline.PNG", "ünï😀.png".encode(), b"bytes\xff.png", b"-rf.png"):
        Path(os.fsdecode(os.fsencode(folder) + b"/" + name)).write_bytes(GOOD)
    return folder


def load(folder, split, **options):
    """Loads a split at 6 x 6."""
    return loader.load("image_folder", split, path=folder, size=6, **options)


def test_odd_names_loops_and_directories_give_every_image_once(folder):
    splits = [load(folder, split) for split in loader.SPLITS]
    assert sum(len(s.data) for s in splits) == 6
    assert all((s.data == 200).all() for s in splits)


def test_files_that_are_no_images_are_named(folder):
    names = broken_things(folder)
    with pytest.raises(UserError) as error:
        load(folder, "train")
    assert all(name in str(error.value) for name in names)
    str(error.value).encode()  # every terminal and file takes it
    assert "line\nbreak" not in str(error.value)


def test_files_that_are_no_images_are_skipped_and_counted_on_demand(folder):
    broken_things(folder)
    splits = [load(folder, split, skip_broken=True) for split in loader.SPLITS]
    assert sum(len(s.data) for s in splits) == 6
    assert sum(len(s.skipped) for s in splits) == 8
    assert all((s.data == 200).all() for s in splits)


CONTENTS = {  # of a file that is no image -> bytes
    "empty": b"", "cut": WHOLE["PNG"][:500], "text": b"hello", "head": b"\x89PNG\r\n",
}  # fmt: skip
FOLDER_NAMES = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=20
).filter(lambda name: not name.startswith("."))


@fuzz
@given(
    st.dictionaries(
        FOLDER_NAMES,
        st.integers(0, 255) | st.sampled_from(sorted(CONTENTS)),
        min_size=4,
        max_size=9,
    )
)
def test_a_folder_of_anything_gives_its_images_and_names_the_other_files(files):
    good = sorted(value for value in files.values() if isinstance(value, int))
    with tempfile.TemporaryDirectory() as place:
        for name, value in files.items():
            image = isinstance(value, int)
            data = encoded(Image.new("L", (6, 6), value), "PNG") if image else CONTENTS[value]
            Path(place, f"{name}.png").write_bytes(data)
        options = {"path": place, "size": 6, "cache_dir": place + "/.cache"}
        try:
            splits = [
                loader.load("image_folder", s, skip_broken=True, **options) for s in loader.SPLITS
            ]
        except UserError as error:  # a split without an image
            assert len(good) < len(files)
            assert "image" in str(error)
            return
        assert sorted(int(x.mean()) for split in splits for x in split.data) == good
        assert sum(len(split.skipped) for split in splits) == len(files) - len(good)
        if len(good) < len(files):
            with pytest.raises(UserError, match="image"):
                loader.load("image_folder", "train", **options)


# Archives.


def idx(values):
    """Returns an IDX file, gzipped."""
    sizes = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    return gzip.compress(sizes + values.tobytes(), mtime=0)


def tarred(names):
    """Returns a .tar.gz with a member of some bytes for each name."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 3000
            tar.addfile(member, io.BytesIO(bytes(range(250)) * 12))
    return file.getvalue()


def zipped(names):
    """Returns a zip of gray images."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(name, GOOD)
    return file.getvalue()


def read_zip(file):
    """Reads what CelebA reads of an archive."""
    members = celeba._members(file)
    return [record["image"] for record in records.ZipMembers(file, list(members.values()))]


IMAGES = np.arange(3 * 28 * 28, dtype=np.uint8).reshape(3, 28, 28)
BATCHES = [name for names in cifar10.BATCHES.values() for name in names]
TABLE = np.zeros((30, 785), np.uint8)
TABLE[:, -1] = np.arange(30) % 10
CSV = gzip.compress("\n".join(",".join(map(str, row)) for row in TABLE.tolist()).encode(), mtime=0)
ARCHIVES = {  # name -> content, reader
    "idx.gz": (idx(IMAGES), lambda file: idx_files.read(file, ndim=3)),
    "celeba.zip": (zipped([f"x/{i:06}.jpg" for i in range(4)]), read_zip),
    "cifar.tar.gz": (tarred(f"{cifar10.FOLDER}/{b}" for b in BATCHES), cifar10._unpack),
    "digits.csv.gz": (CSV, lambda file: digits._records(file, 0)),
}  # fmt: skip


@fuzz
@given(
    st.sampled_from(sorted(ARCHIVES)),
    st.floats(0, 1),
    st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=4),
)
def test_a_damaged_archive_is_reported_or_reads_as_before(tmp_path_factory, name, keep, flips):
    whole, read = ARCHIVES[name]
    data = bytearray(whole if keep > 0.5 else whole[: int(2 * keep * len(whole))])
    for place, bit in flips if data else ():
        data[int(place * len(data))] ^= 1 << bit
    folder = tmp_path_factory.getbasetemp()
    file, good = folder / name, folder / f"good.{name}"
    file.write_bytes(data)
    good.write_bytes(whole)
    with mistakes_are_told():
        found, right = read(file), read(good)
        if name == "celeba.zip":  # what is empty is reported as a broken image
            assert all(image in (b"", GOOD) for image in found)
        elif name == "idx.gz":
            np.testing.assert_array_equal(found, right)
        elif name == "cifar.tar.gz":
            assert {n: c for n, (_, c) in found.items()} == {n: c for n, (_, c) in right.items()}


def test_sizes_that_an_archive_only_claims_are_refused(tmp_path):
    file = tmp_path / "x.gz"
    file.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 2**32 - 1, 2**32 - 1, 2**32 - 1)))
    with pytest.raises(UserError, match=r"GB of memory; .* GB are free. The file is damaged"):
        idx_files.read(file, ndim=3)


BOMB = bytes(64 << 20)  # a thousandth of it when packed


@contextlib.contextmanager
def little_memory():
    """Fails if what is done in it has held an eighth of `BOMB` at a time."""
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < len(BOMB) / 8
    finally:
        tracemalloc.stop()


def test_a_small_idx_file_is_unpacked_no_farther_than_its_header_says(tmp_path):
    file = tmp_path / "x.gz"
    file.write_bytes(gzip.compress(struct.pack(">4I", 0x803, 4, 28, 28) + BOMB))
    with pytest.raises(UserError, match="contains more values"), little_memory():
        idx_files.read(file, ndim=3)


def test_a_small_image_of_a_zip_is_unpacked_no_farther_than_its_table_says(tmp_path):
    file = tmp_path / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("000001.jpg", BOMB)
    members = celeba._members(file)
    for info in members.values():
        info.file_size = 100
    with little_memory():
        (record,) = records.ZipMembers(file, list(members.values()))
    assert record["image"] == b""
