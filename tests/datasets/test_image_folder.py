"""Tests of a user's own images: modes, formats, cropping, resizing, splits, broken files."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tqdm import tqdm

from pmjax.datasets import image_codec, image_folder, loader
from pmjax.errors import UserError
from pmjax.reporting import progress
from tests.datasets.stock_set import png

COLOR = (200, 100, 50)
CHOSEN = ["15.png", "6.png"]  # for testing out of 0.png to 19.png under seed 0


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Keeps the cache of the user out of it."""
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path):
    """An empty directory for images."""
    (tmp_path / "images").mkdir()
    return tmp_path / "images"


def encode(image, kind="PNG", **kwargs):
    """Returns the bytes of a file."""
    file = io.BytesIO()
    image.save(file, kind, **kwargs)
    return file.getvalue()


def fill(folder, names, mode="RGB"):
    """Writes an image of another brightness under each name."""
    for i, name in enumerate(names):
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 7), (i % 256, 128, 255 - i % 256)).convert(mode).save(file)


def load(folder, split="train", size=4, **kwargs):
    """Loads the images of a directory."""
    return loader.load("image_folder", split, path=folder, size=size, **kwargs)


# One image.


def deep(value, dtype):
    """An image of one channel of another depth."""
    return Image.fromarray(np.full((8, 8), value, dtype))


def palette(**kwargs):
    """An image that looks its color up in a table."""
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, *COLOR])
    image.info.update(kwargs)
    return image


@pytest.mark.parametrize(
    "image, kind, expected",
    [
        (Image.new("1", (8, 8), 1), "PNG", 255),
        (Image.new("L", (8, 8), 90), "PNG", 90),
        (Image.new("RGB", (8, 8), COLOR), "PNG", COLOR),
        (Image.new("RGB", (8, 8), COLOR), "BMP", COLOR),
        (Image.new("RGB", (8, 8), COLOR), "GIF", COLOR),
        (Image.new("RGB", (8, 8), COLOR), "JPEG", COLOR),
        (Image.new("RGB", (8, 8), COLOR), "PPM", COLOR),
        (Image.new("RGB", (8, 8), COLOR), "TIFF", COLOR),
        (palette(), "PNG", COLOR),
        (palette(transparency=1), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (*COLOR, 255)), "PNG", COLOR),
        (Image.new("RGBA", (8, 8), (*COLOR, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (8, 8), (0, 100, 250, 51)), "PNG", (204, 224, 254)),
        (Image.new("LA", (8, 8), (50, 51)), "PNG", (214, 214, 214)),
        (Image.new("CMYK", (8, 8), (55, 155, 205, 0)), "JPEG", COLOR),
        (Image.new("CMYK", (8, 8), (0, 0, 0, 255)), "TIFF", (0, 0, 0)),
        (Image.new("RGB", (8, 8), COLOR).convert("YCbCr"), "TIFF", COLOR),
        (deep(65535, np.uint16), "PNG", 255),
        (deep(90 * 257, np.uint16), "PNG", 90),
        (deep(90 * 257, np.uint16), "TIFF", 90),
        (deep(90 * 257, np.uint16), "PPM", 90),
        (deep(90 * 257, np.int32), "TIFF", 90),
        (deep(0.5, np.float32), "TIFF", 128),
    ],
)
def test_every_mode_has_its_own_color(image, kind, expected):
    result = image_codec.decode(encode(image, kind), 4)
    assert result.dtype == np.uint8
    assert result.shape == ((4, 4, 3) if isinstance(expected, tuple) else (4, 4))
    assert np.abs(result.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("image", [deep(70000, np.int32), deep(7, np.float32), deep(np.nan, "f4")])
def test_values_of_unknown_range_are_refused(image):
    with pytest.raises(ValueError, match="outside 0"):
        image_codec.decode(encode(image, "TIFF"), 4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_rotated_upright(orientation):
    upright = np.zeros((16, 16), np.uint8)
    upright[:8, :8], upright[:8, 8:], upright[8:, :8] = 255, 170, 85  # top left, right, bottom left
    turn = {  # what a viewer undoes
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: np.transpose, 6: np.rot90, 7: lambda a: np.rot90(a, 2).T, 8: lambda a: np.rot90(a, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(np.ascontiguousarray(turn(upright))), "JPEG", exif=exif)
    assert np.abs(image_codec.decode(data, 16).astype(int) - upright).max() <= 3


def with_chunks(*chunks, after=False, damage=0):
    """A PNG with more chunks {kind: content} before or after its pixels, and other checksums."""
    data = encode(Image.new("RGB", (16, 16), COLOR))
    at = data.index(b"IEND") - 4 if after else 33
    more = [
        struct.pack(">I", len(content)) + kind + content
        + struct.pack(">I", zlib.crc32(kind + content) ^ damage)
        for kind, content in chunks
    ]  # fmt: skip
    return data[:at] + b"".join(more) + data[at:]


def with_segment(marker, content):
    """A JPEG with another segment at its beginning."""
    data = encode(Image.new("RGB", (16, 16), COLOR), "JPEG", quality=95)
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


LONG = zlib.compress(bytes(3 << 20))  # longer than Pillow reads
TURN = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"
DAMAGED = {  # metadata only
    "PNG, EXIF": with_chunks((b"eXIf", b"\xff\xff")),
    "PNG, long zTXt": with_chunks((b"zTXt", b"a\0\0" + LONG)),
    "PNG, long zTXt after the pixels": with_chunks((b"zTXt", b"a\0\0" + LONG), after=True),
    "PNG, long iTXt": with_chunks((b"iTXt", b"a\0\1\0\0\0" + LONG)),
    "PNG, zTXt": with_chunks((b"zTXt", b"a\0\7")),
    "PNG, checksum of a text": with_chunks((b"tEXt", b"a\0b"), damage=1),
    "PNG, checksum of EXIF": with_chunks((b"eXIf", TURN[6:]), damage=1),
    "PNG, long ICC": with_chunks((b"iCCP", b"a\0\0" + LONG)),
    "PNG, ICC": with_chunks((b"iCCP", b"")),
    "PNG, gamma": with_chunks((b"gAMA", b"\0")),
    "PNG, XMP": with_chunks((b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0<x:x")),
    "JPEG, EXIF": with_segment(0xE1, b"Exif\0\0"),
    "JPEG, two EXIF headers": with_segment(0xE1, b"Exif\0\0Exif\0\0II*\0"),
    "JPEG, ICC": with_segment(0xE2, b"ICC_PROFILE\0\1\2"),
    "JPEG, JFIF": with_segment(0xE0, b"JFIF\0"),
    "JPEG, Photoshop": with_segment(0xED, b"Photoshop 3.0\x008BIM\4\4"),
    "JPEG, Adobe": with_segment(0xEE, b"Adobe"),
    "JPEG, XMP": with_segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x"),
    "WebP, EXIF": encode(Image.new("RGB", (16, 16), COLOR), "WEBP", exif=b"\xff" * 4, quality=100),
    "TIFF, XMP": encode(Image.new("RGB", (16, 16), COLOR), "TIFF", tiffinfo={700: b"<x"}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_metadata_is_ignored(name):
    for pixels in (
        image_codec.decode(DAMAGED[name], 16),
        image_codec.read(DAMAGED[name], np.asarray),  # as an evaluation does
    ):
        assert pixels.shape == (16, 16, 3) and np.abs(pixels.astype(int) - COLOR).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_a_photograph_is_upright_beside_damaged_metadata(kind, monkeypatch):
    image = Image.fromarray(np.repeat(np.uint8([[0, 255]]), 8, 1).repeat(16, 0))
    plain = np.asarray(image)
    data = encode(image, kind, exif=TURN)
    at, more = (33, with_chunks((b"gAMA", b"\0"))) if kind == "PNG" else (2, DAMAGED["JPEG, JFIF"])
    end = len(more) - len(with_chunks()) if kind == "PNG" else 9
    np.testing.assert_allclose(
        image_codec.decode(data[:at] + more[at : at + end] + data[at:], 16),
        np.rot90(plain, -1),
        atol=3,
    )
    monkeypatch.setattr(Image.Exif, "tobytes", lambda exif: exif.nothing)  # other damaged tags
    np.testing.assert_allclose(image_codec.decode(data, 16), np.rot90(plain, -1), atol=3)


@pytest.mark.parametrize("name", [n for n in DAMAGED if n[:3] in ("PNG", "JPE")])
def test_damaged_pixels_are_refused_with_any_metadata(name):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    data = encode(image, name.partition(",")[0])
    start = 33 if name.startswith("PNG") else 2
    pieces = DAMAGED[name][start : start + 100], data[start : len(data) // 2]
    with pytest.raises(ValueError, match="."):
        image_codec.decode(data[:start] + b"".join(pieces), 16)


def test_formats_that_run_other_programs_are_not_read():
    image = Image.new("RGB", (8, 8))
    with pytest.raises(ValueError, match="not an image"):
        image_codec.decode(encode(image, "EPS"), 8)
    assert not {".eps", ".pdf", ".mpg", ".wmf", ".h5"} & set(image_codec.extensions())


@pytest.mark.parametrize("shape", [(10, 20), (20, 10), (11, 20)])
def test_the_center_is_cropped(shape):
    side = min(shape)
    top, left = (shape[0] - side) // 2, (shape[1] - side) // 2
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    expected = image[top : top + side, left : left + side]
    np.testing.assert_array_equal(image_codec.decode(png(image), side), expected)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("cell", [1, 2])
def test_resizing_averages_detail_finer_than_a_pixel(kind, cell):
    board = 255 * ((np.indices((256, 256)) // cell).sum(0) % 2).astype(np.uint8)
    result = image_codec.decode(encode(Image.fromarray(board), kind), 16)
    assert np.abs(result.astype(int) - 127).max() <= 3


def test_skipping_detail_of_large_photographs_hardly_shows():
    grid = np.indices((1024, 1024)) / 1024
    smooth = np.rint(127 + 60 * np.sin(9 * grid[0]) + 60 * np.cos(7 * grid[1])).astype(np.uint8)
    image = Image.fromarray(smooth)
    whole = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC)).astype(int)
    assert np.abs(image_codec.decode(encode(image, "JPEG", quality=95), 32) - whole).max() <= 2


def test_an_image_of_the_right_size_is_unchanged_and_a_small_one_enlarged():
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(image_codec.decode(png(image), 8), image)
    assert image_codec.decode(png(image), 64).shape == (64, 64, 3)


def test_the_first_frame_of_an_animation_is_taken():
    frames = [Image.new("RGB", (8, 8), c) for c in (COLOR, (0, 0, 0))]
    data = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert (image_codec.decode(data, 4) == COLOR).all()


# A directory.


def test_images_are_rgb_unless_every_one_of_both_splits_is_gray(folder):
    fill(folder, [f"{i}.png" for i in range(20)], mode="L")
    fill(folder, ["20.png"], mode="RGB")
    Image.new("RGB", (5, 5), (7, 7, 7)).save(folder / "20.png")
    assert {load(folder, split).data.shape[-1] for split in loader.SPLITS} == {1}
    Image.new("RGB", (5, 5), (7, 8, 7)).save(folder / "20.png")
    assert {load(folder, split).data.shape[-1] for split in loader.SPLITS} == {3}


def test_files_of_all_sizes_modes_and_formats_form_one_array(folder):
    for i, (mode, kind) in enumerate(
        [
            ("L", "png"),
            ("RGB", "jpg"),
            ("P", "gif"),
            ("CMYK", "tif"),
            ("RGBA", "webp"),
            ("1", "BMP"),
        ]
    ):
        Image.new("RGB", (30 + i, 20), COLOR).convert(mode).save(folder / f"{i}.{kind}")
    (folder / "notes.txt").write_text("not an image, and not called one")
    (folder / "._0.png").write_text("what a Mac leaves behind")
    parts = [load(folder, split, size=16).data for split in loader.SPLITS]
    assert np.concatenate(parts).shape == (6, 16, 16, 3)


def test_without_subfolders_a_tenth_is_put_aside_and_stays_there(folder):
    fill(folder, [f"{i:03}.png" for i in range(100)])
    train, test = load(folder), load(folder, "test")
    assert (len(train.data), len(test.data)) == (90, 10)
    values = [part.data[:, 0, 0, 0].tolist() for part in (train, test)]
    assert sorted(values[0] + values[1]) == list(range(100))
    fill(folder, [f"more{i}.png" for i in range(10)])
    again = load(folder, "test").data[:, 0, 0, 0].tolist()
    assert len(set(values[1]) & set(again)) >= 8
    assert load(folder, "test", seed=1).data[:, 0, 0, 0].tolist() != again


def test_the_split_of_a_folder_is_the_same_on_every_machine(folder):
    fill(folder, [f"{i}.png" for i in range(20)])
    splits = image_folder._split(folder, sorted(folder.iterdir()), 0)
    assert [file.name for file in splits["test"]] == CHOSEN


def test_subfolders_train_and_test_are_the_splits(folder):
    fill(folder, ["train/a.png", "train/b.png", "test/c.png", "elsewhere/d.png"])
    train, test = load(folder), load(folder, "test")
    assert train.data[:, 0, 0, 0].tolist() == [0, 1] and test.data[:, 0, 0, 0].tolist() == [2]
    assert train.labels is None and test.labels is None
    assert load(folder, seed=1).fingerprint == train.fingerprint


@pytest.mark.parametrize(
    ("train", "test", "others", "said"),
    [
        ("train", "val", [], "training is on 'train' and testing on 'val'."),
        ("train", "validation", [], "testing on 'validation'."),
        ("train", "valid", [], "testing on 'valid'."),
        ("train", "dev", [], "testing on 'dev'."),
        ("train", "eval", [], "testing on 'eval'."),
        ("Train", "Test", [], ""),
        ("TRAIN", "TEST", [], ""),
        ("training", "testing", [], ""),
        ("training_set", "test_set", [], ""),
        ("train2017", "val2017", [], "testing on 'val2017'."),
        (
            "seg_train",
            "seg_test",
            ["seg_pred"],
            "'seg_train' and testing on 'seg_test'; left out: seg_pred.",
        ),
        ("DIV2K_train_HR", "DIV2K_valid_HR", [], "testing on 'DIV2K_valid_HR'."),
        ("train", "test", ["val"], "'train' and testing on 'test'; left out: val."),
        ("train", "test", ["val", "valid"], "left out: val, valid."),
        ("train", "test", ["bus", "Validation"], "left out: Validation, bus."),
        ("trainset", "val", ["testA"], "'trainset' and testing on 'val'; left out: testA."),
    ],
)
def test_usual_names_of_splits_are_splits(folder, caplog, train, test, others, said):
    names = [f"{split}/{kind}/{i}.png" for split in (train, test) for kind in "ab" for i in (0, 1)]
    fill(folder, [*names, *(f"{name}/c/{i}.png" for name in others for i in (0, 1))])
    parts = [load(folder), load(folder, "test")]
    assert [part.data[:, 0, 0, 0].tolist() for part in parts] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [part.labels.tolist() for part in parts] == [[0, 0, 1, 1]] * 2
    lines = [line for line in caplog.messages if line.startswith(f"{folder}: training is")]
    assert len(lines) == bool(said) and said in "".join(lines)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["test"], "has a folder 'test', .*none for training: call that one 'train'"),
        (["val"], "'val'.*call that one 'train'"),
        (["cat", "dog", "Validation"], "To use 'Validation' alone, .*If it is a class, rename it"),
        (["train", "val", "valid"], "several folders that may be the test split: val, valid"),
        (["Train", "train", "test"], "may be the train split: Train, train. Call the right one 't"),
        (["train", "test_1", "test_2"], "test split: test_1, test_2"),
        (["trainA", "trainB", "testA", "testB"], "may be the train split: trainA, trainB"),
    ],
)
def test_splits_that_are_not_clear_are_refused(folder, names, message):
    fill(folder, [f"{name}/{i}.png" for name in names for i in (0, 1)])
    with pytest.raises(UserError, match=message):
        load(folder)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["bus", "car", "train"], "of those in 'train', is the test split"),
        (["beach", "bullet_train"], "'bullet_train', is"),
        (["seg_test", "bullet_train"], "'bullet_train', 'seg_test', is"),
        (["contest", "trainer"], ""),
        (["data", "images"], ""),
    ],
)
def test_a_class_that_is_named_like_a_split_is_pointed_out(folder, caplog, names, said):
    caplog.set_level("WARNING")
    fill(folder, [f"{name}/{i}.png" for name in names for i in range(5)])
    assert set(load(folder).labels) | set(load(folder, "test").labels) == set(range(len(names)))
    assert len(caplog.messages) == bool(said) and said in caplog.text


def test_a_single_folder_for_training_is_split(folder, caplog):
    fill(folder, [f"train/{kind}/{i}.png" for kind in "ab" for i in range(5)])
    train, test = load(folder), load(folder, "test")
    assert (len(train.data), len(test.data), train.labels) == (9, 1, None)
    assert "a tenth of all images, also of those in 'train', is the test split" in caplog.text


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["xray/train/a", "xray/train/b", "xray/test/a", "xray/val/a"], "xray"),
        (["images/train2017", "images/val2017", "labels/train2017"], "images"),
        (["a/b/Training", "a/b/Testing"], "a/b"),
        (["cat/train", "dog/test"], ""),
        (["cat/bullet_train", "cat/test"], ""),
    ],
)
def test_splits_in_a_subfolder_are_pointed_out(folder, caplog, names, said):
    caplog.set_level("WARNING")
    fill(folder, [f"{name}/{i}.png" for name in names for i in range(3)])
    load(folder), load(folder, "test")
    assert len(caplog.messages) == bool(said)
    assert f"give {folder / said} as path" * bool(said) in caplog.text


def test_counts_of_images_and_classes_are_logged_once(folder, caplog):
    caplog.set_level("INFO")
    fill(folder, [f"{kind}/{i}.png" for kind in "ab" for i in range(5)])
    load(folder), load(folder, "test")
    assert caplog.messages.count(f"{folder}: 9 training and 1 test images; classes: 2.") == 1


def test_class_subfolders_give_labels_that_agree_between_the_splits(folder):
    fill(folder, ["train/cat/a.png", "train/dog/b.png", "train/emu/x/c.png", "test/dog/d.png"])
    assert load(folder).labels.tolist() == [0, 1, 2]
    assert load(folder, "test").labels.tolist() == [1]


def test_class_subfolders_give_labels_without_given_splits(folder):
    fill(folder, [f"{'ab'[i % 2]}/{i}.png" for i in range(40)])
    for split in loader.SPLITS:
        part = load(folder, split)
        assert part.labels.tolist() == (part.data[:, 0, 0, 0] % 2).tolist()


def test_images_beside_the_subfolders_leave_no_labels(folder):
    fill(folder, ["a/0.png", "b/1.png", "2.png"])
    assert load(folder).labels is None


def test_links_are_followed_but_never_in_circles(folder, tmp_path):
    fill(tmp_path / "other", ["0.png", "1.png"])
    (folder / "other").symlink_to(tmp_path / "other")
    (folder / "circle").symlink_to(folder)
    fill(folder, ["2.png"])
    assert len(load(folder).data) + len(load(folder, "test").data) == 3


FORMATS = {
    "a.jfif": "JPEG", "b.JPE": "JPEG", "c.dib": "DIB", "d.ico": "ICO", "e.apng": "PNG",
    "f.PNG": "PNG", "g.tga": "TGA", "h.pcx": "PCX", "i.Jpeg": "JPEG", "j.jp2": "JPEG2000",
    "k.qoi": "QOI", "l.sgi": "SGI",
}  # fmt: skip


def test_every_ending_that_pillow_reads_is_taken_and_the_others_are_counted_once(folder, caplog):
    caplog.set_level("WARNING")
    for name, kind in FORMATS.items():
        (folder / name).write_bytes(encode(Image.new("RGB", (16, 16), COLOR), kind))
    for name in ("a.heic", "b.HEIC", "c.pdf", "photo", "x.jpg~", "clip.mpg", "y.z\n"):
        (folder / name).write_bytes(b"")
    parts = [load(folder, split).data for split in loader.SPLITS]
    assert np.abs(np.concatenate(parts).astype(int) - COLOR).max() <= 4
    assert sum(map(len, parts)) == len(FORMATS)
    (line,) = caplog.messages
    assert "files are left out" in line and "\n" not in line
    assert line.endswith(": 2 .heic, 2 without an ending, 1 .jpg~, 1 .mpg, 1 .pdf.")


def test_what_systems_leave_in_folders_is_no_image(folder, caplog):
    caplog.set_level("WARNING")
    fill(folder, ["0.png", "a/1.png"])
    for name in (
        "@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg", "a/@eaDir/x.jpg", ".thumbnails/x.png", "a/.x/y.png",
        "__MACOSX/a/._1.png", "._0.png", "a/.hidden.png", "#recycle/2.png", "$RECYCLE.BIN/2.png",
        "Thumbs.db", "a/.DS_Store", "desktop.ini",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"no image")
    assert sum(len(load(folder, split).data) for split in loader.SPLITS) == 2
    assert not caplog.messages


def test_a_changed_image_is_noticed(folder):
    fill(folder, ["train/a.png", "test/b.png"])
    first = load(folder)
    Image.new("RGB", (9, 7), COLOR).save(folder / "train" / "a.png")
    assert load(folder).fingerprint != first.fingerprint


def test_odd_file_names_do_no_harm(folder):
    fill(folder, ["train/é \n%d{0}.png", "train/b.png", "test/c.png"])
    (folder / "train" / "\udcff.png").write_bytes(b"")
    data = load(folder, skip_broken=True)
    assert len(data.data) == 2 and data.skipped == ("train/\udcff.png",)


# Mistakes.


def test_a_missing_folder_or_path_or_size_is_reported(tmp_path, folder):
    with pytest.raises(UserError, match="no directory .*nowhere"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="needs the directory"):
        load(None)
    fill(folder, ["0.png", "1.png"])
    for size in (None, -1):
        with pytest.raises(UserError, match="size=64"):
            load(folder, size=size)


def test_an_empty_folder_is_reported_with_the_formats_that_are_read(folder):
    (folder / "readme.txt").write_text("nothing here")
    with pytest.raises(UserError, match=r"No images in .*\.jpg"):
        load(folder)
    (folder / "photo.heic").touch()
    with pytest.raises(UserError, match="No images in .*, only files left out: 1 .*, 1 .*Support"):
        load(folder)
    fill(folder, ["train/a.png"])
    (folder / "test").mkdir()
    with pytest.raises(UserError, match="No images in .*test"):
        load(folder)


def test_a_single_image_is_too_few(folder):
    fill(folder, ["0.png"])
    with pytest.raises(UserError, match="single image"):
        load(folder)


@pytest.fixture
def broken(folder):
    """A folder with four sound images and four broken ones."""
    fill(folder, ["train/0.png", "train/1.png", "train/2.png", "test/3.png"])
    sound = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8))
    (folder / "train" / "cut.jpg").write_bytes(encode(sound, "JPEG")[:700])
    (folder / "train" / "cut.png").write_bytes(encode(sound)[:700])
    (folder / "train" / "empty.png").touch()
    (folder / "test" / "text.png").write_text("a renamed text file")
    return folder


def test_broken_files_are_all_named_with_the_reason(broken):
    with pytest.raises(UserError) as e:
        load(broken)
    for text in (
        "4 of its files", "train/cut.jpg: ", "train/cut.png: ", "truncated",
        "train/empty.png: empty", "test/text.png: not an image", "skip_broken=True",
    ):  # fmt: skip
        assert text in str(e.value)


def test_broken_files_are_left_out_counted_and_listed_on_demand(broken, caplog):
    with pytest.raises(UserError, match="No file of the test split"):
        (broken / "test" / "3.png").rename(broken / "3.png")
        load(broken, skip_broken=True)
    (broken / "3.png").rename(broken / "test" / "3.png")
    train, test = (load(broken, split, skip_broken=True) for split in loader.SPLITS)
    assert train.data[:, 0, 0, 0].tolist() == [0, 1, 2] and len(test.data) == 1
    assert train.skipped == ("train/cut.jpg", "train/cut.png", "train/empty.png")
    assert test.skipped == ("test/text.png",)
    assert "cannot read 4 of its files" in caplog.text


def test_left_out_files_are_an_error_again_without_skip_broken(broken):
    load(broken, skip_broken=True)
    with pytest.raises(UserError, match="train/cut.jpg"):
        load(broken)


def test_labels_stay_with_their_images_when_files_are_left_out(folder):
    fill(folder, [f"{split}/{'ab'[i]}/{i}.png" for split in loader.SPLITS for i in range(2)])
    (folder / "train" / "a" / "!.png").touch()
    data = load(folder, skip_broken=True)
    assert data.data[:, 0, 0, 0].tolist() == data.labels.tolist() == [0, 1]


def test_an_image_of_absurd_size_is_named(folder, monkeypatch):
    fill(folder, ["train/a.png", "train/b.png", "test/c.png"])
    Image.new("L", (50, 50)).save(folder / "train" / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UserError, match="bomb.png: more than .* million pixels"):
        load(folder)


def test_work_that_takes_long_shows_progress_on_stderr(folder, monkeypatch, capsys):
    fill(folder, [f"{i}.png" for i in range(20)])
    eager = {"delay": 0, "mininterval": 0}
    monkeypatch.setattr(progress, "tqdm", lambda **kw: tqdm(**{**kw, **eager}))
    load(folder)
    out, err = capsys.readouterr()
    assert "image_folder: 100%" in err and "20/20" in err and "images/s" in err and not out
