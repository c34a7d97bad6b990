"""The evaluation's command on folders of images, and what it keeps in metrics.json."""

import functools
import json
import os
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmjax import config, evaluate
from pmjax.datasets.base import Dataset
from pmjax.errors import UserError
from pmjax.evals import image_sets, registry, runner
from pmjax.evals.context import Context
from pmjax.evals.features import efficientnet_lite0
from pmjax.evals.features.base import extract_features
from pmjax.evals.registry import extractor_of
from pmjax.storage import metrics_file
from tests.evals.moments_distance import frechet_distance, gaussian

record = functools.partial(metrics_file.record, metric_of=registry.metric_of)
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (24, 16, 12, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Makes a folder of images by a name, some in a subfolder."""

    def make(name, images):
        for i, image in enumerate(images):
            path = tmp_path / name / ("deeper" if i % 2 else ".") / f"{i:03}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.squeeze()).save(path)
        return tmp_path / name

    return make


@pytest.fixture
def cheap_features(monkeypatch):
    """Features that cost nothing: means of the quarters of an image."""

    def stream(images, **_):
        x = np.asarray(images, np.float32)
        halves = x.reshape(len(x), 2, x.shape[1] // 2, 2, x.shape[2] // 2, -1)
        yield halves.mean((2, 4, 5)).reshape(len(x), -1)

    monkeypatch.setattr(efficientnet_lite0, "stream", stream)


def command(monkeypatch, *args):
    monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, args)])
    evaluate.main()


def test_two_folders_are_compared_from_end_to_end(tmp_path, folder, monkeypatch, capsys):
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    samples, reference = folder("samples", PIXELS[:10]), folder("reference", PIXELS[10:])
    out = tmp_path / "metrics.json"
    command(
        monkeypatch, f"--samples={samples}", f"--reference={reference}", f"--floor={samples}",
        "--evals=fd_efficientnet_lite0", f"--out={out}", "--seed=3",
    )  # fmt: skip
    found = json.loads(out.read_text())
    moments = [
        gaussian(extract_features(efficientnet_lite0, x, batch_size=64))
        for x in (PIXELS[:10], PIXELS[10:])
    ]
    expected = frechet_distance(*moments[0], *moments[1])
    key = "fd_efficientnet_lite0/samples"
    assert found["metrics"][key] == pytest.approx(expected, rel=1e-3)
    assert found["metrics"]["fd_efficientnet_lite0/floor"] == pytest.approx(expected, rel=1e-3)
    assert found["seed"] == 3 and found["num_samples"] == 10
    assert [each["metrics"] for each in found["history"]] == [found["metrics"]]
    weights = found["extractors"]["efficientnet_lite0"]["weights"]
    assert weights == efficientnet_lite0.SHA256
    assert found["sets"]["reference"]["num"] == 14
    assert f"{key} " in capsys.readouterr().out


def test_results_are_added_and_nothing_is_lost(tmp_path, folder, cheap_features):
    samples, reference = folder("samples", PIXELS[:12]), folder("reference", PIXELS[12:])
    out = tmp_path / "deep" / "metrics.json"
    for seed in range(3):
        runner.compare(samples, reference, seed=seed, out=out)
    found = json.loads(out.read_text())
    assert found["seed"] == 2 and [each["seed"] for each in found["history"]] == [0, 1, 2]
    assert all(each["metrics"] and each["versions"] for each in found["history"])
    assert not any("history" in each for each in found["history"])
    assert found["metrics"] == found["history"][2]["metrics"]


def test_metrics_of_one_model_stand_side_by_side_and_those_of_another_do_not(tmp_path):
    path, about = tmp_path / "metrics.json", {"seed": 1, "model": "a"}
    record(path, {"recon/mse": 1.0, "latent/var_min": 2.0}, about)
    known = record(path, {"recon/mse": 3.0, "kd/own": 4.0}, about)
    assert known == {"recon/mse": 3.0, "latent/var_min": 2.0, "kd/own": 4.0}
    assert json.loads(path.read_text())["metrics"] == known
    other = record(path, {"kd/own": 5.0}, about | {"model": "b"})
    assert other == {"kd/own": 5.0}
    again = record(path, {"kd/own": 6.0}, about, training=[{"step": 1}])
    assert again == {"recon/mse": 3.0, "latent/var_min": 2.0, "kd/own": 6.0}
    found = json.loads(path.read_text())
    assert [each["metrics"] for each in found["history"]] == [
        {"recon/mse": 1.0, "latent/var_min": 2.0},
        {"recon/mse": 3.0, "kd/own": 4.0},
        {"kd/own": 5.0},
        {"kd/own": 6.0},
    ]
    assert found["training"] == [{"step": 1}] and found["model"] == "a"


def made_by(weights, metric="kid", **args):
    uses = {metric: "inception_2015", "kd": "efficientnet_lite0"}
    used = {"inception_2015": {"weights": weights}, "efficientnet_lite0": {"weights": "e"}}
    return {"seed": 1, "extractors": used, "uses": uses, "args": {metric: args} if args else {}}


def test_values_of_other_weights_or_arguments_do_not_stand_side_by_side(tmp_path):
    path = tmp_path / "metrics.json"
    steps = (
        ({"kid/a": 1.0, "kd/a": 2.0, "recon/mse": 3.0}, made_by("w"), {"kid/a", "kd/a"}),
        ({"fid_infinity/a": 4.0}, made_by("v", "fid_infinity"), {"kd/a", "fid_infinity/a"}),
        ({"kid/b": 5.0}, made_by("v"), {"kd/a", "fid_infinity/a", "kid/b"}),
        ({"kid/c": 6.0}, made_by("v", subsets=3), {"kd/a", "fid_infinity/a", "kid/c"}),
        ({"kid/d": 7.0}, made_by("v"), {"kd/a", "fid_infinity/a", "kid/b", "kid/d"}),
    )
    for values, made, left in steps:
        known = record(path, values, made)
        assert set(known) == left | {"recon/mse"}
        found = json.loads(path.read_text())
        assert found["extractors"] == made["extractors"] and found["args"] == made["args"]
    assert len(found["history"]) == len(steps)
    assert set(found["uses"]) == {"kd", "fid_infinity", "kid"}


def test_protocols_stand_side_by_side_as_values_name_them(tmp_path):
    path = tmp_path / "metrics.json"
    for protocol in ("10k_test", "50k_train"):
        made = made_by("w", "fid", protocols=(protocol,))
        known = record(path, {f"fid/{protocol}/pytorch_fid/a": 1.0}, made)
    assert set(known) == {"fid/10k_test/pytorch_fid/a", "fid/50k_train/pytorch_fid/a"}


def test_a_flag_that_holds_no_longer_goes(tmp_path):
    path = tmp_path / "metrics.json"
    record(path, {"kid/a": 1.0, "kid/flag/subset_size": 9.0}, {})
    assert set(record(path, {"recon/mse": 1.0}, {})) == {
        "kid/a", "kid/flag/subset_size", "recon/mse"
    }  # fmt: skip
    assert set(record(path, {"kid/a": 2.0}, {})) == {"kid/a", "recon/mse"}


def test_metrics_of_versions_that_did_not_name_the_model_stay(tmp_path):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"metrics": {"recon/mse": 1.0}, "seed": 1, "history": []}))
    known = record(path, {"kd/own": 2.0}, {"seed": 1, "model": "a"})
    assert known == {"recon/mse": 1.0, "kd/own": 2.0}


@pytest.mark.parametrize("older", [[], [{"metrics": {"recon/mse": 0.5}, "seed": 7}]])
def test_results_of_earlier_versions_are_kept(tmp_path, older):
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"metrics": {"recon/mse": 1.0}, "seed": 0, "history": older}))
    record(path, {"recon/mse": 2.0}, {"seed": 1})
    assert json.loads(path.read_text()) == {
        "metrics": {"recon/mse": 2.0},
        "seed": 1,
        "history": [
            *older,
            {"metrics": {"recon/mse": 1.0}, "seed": 0},
            {"metrics": {"recon/mse": 2.0}, "seed": 1},
        ],
    }


@pytest.mark.parametrize("damage", ['{"metrics"', "[1]", '{"history": 3}', '{"history": [4, {}]}'])
def test_a_damaged_file_of_results_is_set_aside(tmp_path, damage, caplog):
    path = tmp_path / "metrics.json"
    path.write_text(damage)
    assert record(path, {"a": 1.0}, {}) == {"a": 1.0}
    assert json.loads(path.read_text()) == {
        "metrics": {"a": 1.0},
        "history": [{"metrics": {"a": 1.0}}],
    }
    assert (tmp_path / "metrics.json.damaged").read_text() == damage
    assert "could not be read" in caplog.text


def test_a_folder_is_an_array_that_stays_on_disk(folder):
    images = image_sets.load(folder("x", PIXELS)).data
    assert images.shape == PIXELS.shape and len(images) == 24
    order = sorted(range(24), key=lambda i: (i % 2 == 1, i))  # those of the subfolder come last
    names = [int(file.stem) for file in images.files]
    np.testing.assert_array_equal(images[3:7], PIXELS[names[3:7]])
    np.testing.assert_array_equal(images[np.array([5, 0])], PIXELS[[names[5], names[0]]])
    np.testing.assert_array_equal(np.asarray(images), PIXELS[names])
    assert names == order


def test_a_folder_of_gray_images_has_one_channel_and_a_mixed_one_three(folder):
    gray = [image[..., :1] for image in PIXELS[:4]]
    assert image_sets.load(folder("gray", gray)).data.shape == (4, 16, 12, 1)
    mixed = image_sets.load(folder("mixed", [*gray, PIXELS[4]])).data
    np.testing.assert_array_equal(mixed[:1][0], np.repeat(gray[0], 3, -1))


def test_the_fingerprint_of_a_folder_is_of_its_content(folder):
    prints = [image_sets.load(folder(n, x)).fingerprint for n, x in (("a", PIXELS), ("b", PIXELS))]
    assert prints[0] == prints[1] != image_sets.load(folder("c", PIXELS[:9])).fingerprint


def test_unreadable_files_are_named(folder):
    path = folder("x", PIXELS)
    (path / "000.png").write_bytes(b"no image")
    (path / "002.png").write_bytes((path / "004.png").read_bytes()[:400])
    with pytest.raises(UserError, match=r"1 of the images .*000.png: not an image.*Fix or"):
        image_sets.load(path)
    (path / "000.png").unlink()
    with pytest.raises(UserError, match=r"002.png: "):
        np.asarray(image_sets.load(path).data)


def test_images_of_several_sizes_are_refused(folder):
    path = folder("x", [*PIXELS, PIXELS[0, :8]])
    with pytest.raises(UserError, match=r"24 of 12×16 \(as 000.png\), 1 of 12×8 \(as 024.png\)"):
        image_sets.load(path)


def test_images_with_an_alpha_channel_are_refused(folder):
    rgba = np.concatenate([PIXELS[:2], PIXELS[:2, ..., :1]], -1)
    with pytest.raises(UserError, match="000.png: it has an alpha channel"):
        image_sets.load(folder("x", rgba))


def test_an_alpha_channel_is_to_be_flattened(folder):
    rgba = np.concatenate([PIXELS[:2], PIXELS[:2, ..., :1]], -1)
    with pytest.raises(UserError, match="Flatten the alpha channel onto one background"):
        image_sets.load(folder("x", rgba))


def test_hidden_files_are_ignored_and_other_files_are_counted(tmp_path, folder, caplog):
    caplog.set_level("WARNING")
    path = folder("x", PIXELS[:4])
    for hidden in (".ipynb_checkpoints/000-checkpoint.png", "._000.png", "@eaDir/000.png"):
        (path / hidden).parent.mkdir(exist_ok=True)
        (path / hidden).write_bytes(b"no image")
    (path / "deeper" / "photo.heic").write_bytes((path / "000.png").read_bytes())
    for _ in range(2):
        assert len(image_sets.load(path).data) == 4
    assert caplog.messages == [
        f"{path}: files are left out, as their names do not end like those of images: 1 .heic."
    ]


def test_damaged_metadata_is_ignored(folder):
    path = folder("x", PIXELS)
    for file in path.glob("*.png"):
        whole = file.read_bytes()
        file.write_bytes(whole[:33] + b"\0\0\0\0iCCP" + bytes(4) + whole[33:])
    assert np.asarray(image_sets.load(path).data).sum() == PIXELS.sum()


def test_an_empty_or_missing_folder_is_named(tmp_path):
    with pytest.raises(UserError, match="No images in"):
        image_sets.load(tmp_path)
    with pytest.raises(UserError, match="is neither a folder of images"):
        image_sets.load(tmp_path / "missing")


@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_arrays_are_images_too(tmp_path, name):
    for images in (PIXELS, PIXELS / np.float32(255)):
        (np.save if name.endswith("npy") else np.savez)(tmp_path / name, images)
        np.testing.assert_array_equal(image_sets.load(tmp_path / name).data, PIXELS)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.full((2, 4, 4, 3), np.nan), "NaN"),
        (np.full((2, 4, 4, 3), -1.0), "within \\[0, 1\\]"),
        (np.zeros((2, 4, 4, 4), np.uint8), "1 or 3].*alpha"),
        (np.zeros((2, 3, 4, 4), np.uint8), "Channels come last"),
        (np.zeros((2, 4, 4)), "1 or 3"),
        (np.zeros((2, 4, 4, 3), np.int64), "int64"),
        (np.zeros(2048), r"float64 \[2048\]"),
    ],
)
def test_arrays_that_are_no_images_are_refused(tmp_path, images, message):
    np.save(tmp_path / "x.npy", images)
    with pytest.raises(UserError, match=message):
        image_sets.load(tmp_path / "x.npy")


@pytest.mark.parametrize(
    "more",
    [
        {"arr_0": PIXELS, "arr_1": np.arange(24)},  # samples of guided-diffusion
        {"arr_0": PIXELS, "mu": np.zeros(9), "sigma": np.eye(9), "mu_s": np.zeros(7)},
        {"images": PIXELS, "labels": np.arange(24)},
        {"images": PIXELS, "about": np.array([None])},
        {"x": PIXELS, "mu": np.zeros(9), "sigma": np.eye(9)},
    ],
    ids=lambda arrays: ", ".join(arrays),
)
def test_images_beside_other_arrays_are_read(tmp_path, more):
    np.savez(tmp_path / "x.npz", **more)
    np.testing.assert_array_equal(image_sets.load(tmp_path / "x.npz").data, PIXELS)


def test_each_metric_takes_what_it_needs_of_images_and_statistics(
    tmp_path, cheap_features, monkeypatch
):
    monkeypatch.setattr(efficientnet_lite0, "DIM", 4)
    names, args = ["fd_efficientnet_lite0", "kd_efficientnet_lite0"], {"subsets": 2}
    distances, kernels = [], []
    for dim in (4, 7):
        path = tmp_path / f"{dim}.npz"
        np.savez(path, arr_0=PIXELS, mu=np.full(dim, 100), sigma=np.eye(dim))
        for given in (path, None):
            ctx = Context.from_images(PIXELS, image_sets.load(path), statistics=given)
            found = runner.run(names, ctx, {"kd_efficientnet_lite0": args})
            distances.append(found["fd_efficientnet_lite0/samples"])
            kernels.append(found["kd_efficientnet_lite0/samples"])
    assert len(set(kernels)) == 1
    own, *others = distances  # statistics of the extractor's features; of other features; none
    assert own > 100 > others[0] and len(set(others)) == 1


@pytest.mark.parametrize("floor", [None, image_sets.SPLIT])
def test_statistics_beside_images_are_of_the_whole_reference(
    tmp_path, cheap_features, monkeypatch, caplog, floor
):
    monkeypatch.setattr(efficientnet_lite0, "DIM", 4)
    path, out = tmp_path / "x.npz", tmp_path / "m.json"
    np.savez(path, arr_0=PIXELS, mu=np.full(4, 100), sigma=np.eye(4))
    found = runner.compare(path, path, floor=floor, metrics=("fd_efficientnet_lite0",), out=out)
    assert (found["fd_efficientnet_lite0/samples"] > 100) == (not floor)
    assert json.loads(out.read_text())["sets"]["reference"].get("statistics") == (not floor or None)
    assert ("they are not used" in caplog.text) == bool(floor)


def test_a_training_set_of_another_size_is_encoded_again(caplog):
    model = types.SimpleNamespace(encode=lambda x: x.mean((1, 2)))
    data = Dataset(PIXELS, None, "")
    for num, again in ((24, False), (20, True)):
        ctx = Context(
            model, data, data, (), load_embeddings=lambda num=num: np.zeros((num, 3), np.float32)
        )
        z = ctx.embeddings("train")
        assert len(z) == 24 and z.any() == again
        assert ("has 24 examples and had 20 in training" in caplog.text) == again


@pytest.mark.parametrize("arrays", [{"mean": 0, "cov": 0}, {"mu": 0}, {}], ids=str)
def test_statistics_without_mu_and_sigma_are_refused_with_the_missing_names(tmp_path, arrays):
    np.savez(tmp_path / "x.npz", **{name: np.zeros(2048) for name in arrays})
    with pytest.raises(UserError, match=r"'mu' \[D\] and 'sigma' \[D, D\]"):
        image_sets.load(tmp_path / "x.npz")


def test_floats_are_read_a_part_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(image_sets, "CHUNK", 5)
    images = PIXELS / np.float32(255)
    np.save(tmp_path / "x.npy", images)
    np.testing.assert_array_equal(image_sets.load(tmp_path / "x.npy").data, PIXELS)
    np.save(tmp_path / "x.npy", np.where(np.arange(24)[:, None, None, None] == 23, 2, images))
    with pytest.raises(UserError, match="floats from .* to 2"):
        image_sets.load(tmp_path / "x.npy")


def test_damaged_arrays_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", PIXELS)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:500])
    np.savez(tmp_path / "y.npz", one=PIXELS, two=PIXELS)
    for name in ("x.npz", "y.npz"):
        with pytest.raises(UserError, match="cannot be read as images"):
            image_sets.load(tmp_path / name)


def test_sets_of_different_sizes_are_refused(tmp_path, folder):
    samples, reference = folder("samples", PIXELS), folder("reference", PIXELS[:, :8])
    with pytest.raises(UserError, match="samples 16×12, reference 8×12"):
        runner.compare(samples, reference, out=tmp_path / "m.json")


@pytest.mark.parametrize("kind", ["folder", "npy"])
def test_gray_samples_compare_with_an_rgb_reference(tmp_path, folder, kind, caplog):
    gray = PIXELS[:12, ..., :1]
    samples, reference = folder("gray", gray), folder("reference", PIXELS[12:])
    if kind == "npy":
        samples = tmp_path / "gray.npy"
        np.save(samples, gray)
    rgb, out = folder("rgb", np.repeat(gray, 3, -1)), tmp_path / "m.json"
    found = [
        runner.compare(x, reference, metrics=["sliced_wasserstein"], floor=samples, out=out)[
            "sliced_w2/samples"
        ]
        for x in (samples, rgb)
    ]
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert any("compared as RGB" in line and "samples, floor" in line for line in caplog.messages)


def test_a_missing_floor_is_reported(tmp_path, folder, caplog):
    path = folder("x", PIXELS)
    for floor in (None, path):
        runner.compare(
            path, path, metrics=["sliced_wasserstein"], floor=floor, out=tmp_path / "m.json"
        )
    warned = [line for line in caplog.messages if "There is no floor" in line]
    assert len(warned) == 1 and "--floor=FOLDER" in warned[0] and "--floor=split" in warned[0]


def bag(images):
    return sorted(image.tobytes() for image in np.asarray(images))


@pytest.mark.parametrize("kind", ["folder", "npy", "gray"])
def test_a_floor_is_split_off_the_reference(tmp_path, folder, kind, caplog):
    images = PIXELS[..., :1] if kind == "gray" else PIXELS
    reference, samples = folder("reference", images), folder("samples", PIXELS[:7])
    if kind == "npy":
        reference = tmp_path / "reference.npy"
        np.save(reference, PIXELS)
    found = []
    for seed in (0, 0, 1):
        found.append(image_sets.compared(samples, reference, "split", seed=seed))
    for sets, about in found:
        floor, rest = np.asarray(sets["floor"].data), np.asarray(sets["reference"].data)
        assert floor.shape == (7, 16, 12, 3) and rest.shape == (17, 16, 12, 3)
        assert bag(np.concatenate([floor, rest])) == bag(np.broadcast_to(images, PIXELS.shape))
        np.testing.assert_array_equal(sets["reference"].data[np.array([9, 2])], rest[[9, 2]])
        assert [about[name]["num"] for name in ("samples", "reference", "floor")] == [7, 17, 7]
        assert about["floor"]["part_of"] == about["reference"]["part_of"]
        assert about["floor"]["part_of"]["num"] == 24
    floors, rests = (
        [sets[name].fingerprint for sets, _ in found] for name in ("floor", "reference")
    )
    assert floors[0] == floors[1] != floors[2] and rests[0] == rests[1] != rests[2]
    assert len({floors[0], rests[0], found[0][1]["floor"]["part_of"]["fingerprint"]}) == 3
    assert bag(found[0][0]["floor"].data) != bag(found[2][0]["floor"].data)
    line = "7 of the reference's 24 images, drawn with seed 0, are the floor; samples and floor"
    assert sum(line in each and "the other 17" in each for each in caplog.messages) == 2
    assert not any("biased" in each or "no floor" in each for each in caplog.messages)


def test_samples_and_a_split_floor_are_compared_with_the_same_images(
    tmp_path, folder, cheap_features, monkeypatch
):
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    paths = [folder("samples", PIXELS[:10]), folder("reference", PIXELS)]
    out = tmp_path / "m.json"
    given = [f"--samples={paths[0]}", f"--reference={paths[1]}", f"--out={out}", "--seed=5"]
    command(monkeypatch, *given, "--floor=split")
    sets, about = image_sets.compared(*paths, "split", seed=5)
    features = {
        name: extract_features(efficientnet_lite0, np.asarray(each.data))
        for name, each in sets.items()
    }
    found = json.loads(out.read_text())
    for what in ("samples", "floor"):
        expected = frechet_distance(*gaussian(features[what]), *gaussian(features["reference"]))
        assert found["metrics"][f"fd_efficientnet_lite0/{what}"] == pytest.approx(expected)
    assert found["sets"] == about


def test_a_warning_says_that_half_a_small_reference_is_a_biased_floor(tmp_path, folder, caplog):
    samples = folder("samples", PIXELS[:12])
    sets, _ = image_sets.compared(samples, folder("x", PIXELS[:19]), "split", seed=0)
    assert len(sets["floor"].data) == 9 and len(sets["reference"].data) == 10
    assert (
        "fewer images than the 12 samples, so that it is biased upward by its size" in caplog.text
    )
    with pytest.raises(UserError, match="the reference has 3. Give more"):
        image_sets.compared(samples, folder("y", PIXELS[:3]), "split", seed=0)


def test_statistics_have_no_images_for_a_floor(tmp_path, folder, caplog):
    np.savez(tmp_path / "s.npz", mu=np.zeros(2048), sigma=np.zeros((2048, 2048), np.float16))
    with pytest.raises(UserError, match=r"s.npz holds statistics only.*--floor=FOLDER"):
        runner.compare(folder("x", PIXELS), tmp_path / "s.npz", floor="split", out=tmp_path / "m")
    image_sets.compared(folder("x", PIXELS), tmp_path / "s.npz", None, seed=0)
    assert "--floor=FOLDER" in caplog.text and "split" not in caplog.text


def test_a_folder_called_split_is_given_with_its_path(
    tmp_path, folder, cheap_features, monkeypatch
):
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    folder("split", PIXELS[:5]), folder("samples", PIXELS[:4]), folder("reference", PIXELS)
    monkeypatch.chdir(tmp_path)
    command(monkeypatch, "--samples=samples", "--reference=reference", "--floor=./split")
    floor = json.loads((tmp_path / "metrics.json").read_text())["sets"]["floor"]
    assert floor["num"] == 5 and floor["path"] == str(tmp_path / "split")


@pytest.mark.parametrize(
    ("dim", "metric"),
    [(2048, "fid"), (1280, "fd_efficientnet_lite0"), (None, "fd_efficientnet_lite0")],
)
def test_the_metric_follows_the_reference(tmp_path, folder, monkeypatch, caplog, dim, metric):
    samples, ran = folder("x", PIXELS), []
    reference = samples
    if dim:
        reference = tmp_path / "s.npz"
        np.savez(reference, mu=np.zeros(dim), sigma=np.zeros((dim, dim), np.float16))
    monkeypatch.setattr(registry, "validate", lambda *_: None)
    monkeypatch.setattr(runner, "run", lambda metrics, *_, **_k: ran.append(metrics) or {})
    runner.compare(samples, reference, out=tmp_path / "m.json")
    assert (metric,) in ran
    assert any(f"--evals={metric}" in line for line in caplog.messages) == bool(dim)
    runner.compare(samples, reference, metrics=["kid"], out=tmp_path / "m.json")
    assert ("kid",) in ran


def test_arguments_of_metrics_come_from_the_command_and_are_recorded(tmp_path, folder, monkeypatch):
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    path, out = folder("x", PIXELS), tmp_path / "m.json"
    args = [f"--samples={path}", f"--reference={path}", "--evals=sliced_wasserstein"]
    args += [f"--out={out}", "--config.eval.args.sliced_wasserstein.projections=7"]
    seen = []
    monkeypatch.setattr(
        "pmjax.evals.metrics.sliced_wasserstein.sliced_wasserstein2",
        lambda *_, projections, seed: seen.append(projections) or 0.0,
    )
    command(monkeypatch, *args)
    assert seen == [7]
    found = json.loads(out.read_text())
    assert found["args"] == found["history"][0]["args"] == {
        "sliced_wasserstein": {"projections": 7}
    }  # fmt: skip


def test_arguments_of_metrics_in_a_config_reach_them_with_fids_protocols():
    settings = config.load(
        "configs/digits.py",
        {"eval.args.kid.subset_size": "500", "eval.fid_protocols": "50k_train"},
    )
    assert runner.metric_args(settings) == {
        "kid": {"subset_size": 500}, "fid": {"protocols": ("50k_train",)}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("metric", "args", "checked"),
    [
        ("fid", {"protocols": "10k_test, 50k_train"}, {"protocols": ("10k_test", "50k_train")}),
        ("sinkhorn", {"regularisation": 1}, {"regularisation": 1.0}),
        ("fd_efficientnet_lite0", {"resolution": None}, {"resolution": None}),
        ("memorisation", {"extractor": "inception_2015"}, {"extractor": "inception_2015"}),
    ],
)
def test_arguments_come_as_the_types_that_a_metric_takes(metric, args, checked):
    assert registry.checked(metric, args) == checked


@pytest.mark.parametrize(
    ("metric", "args", "message"),
    [
        ("kit", {}, "Did you mean 'kid'"),
        ("kid", {"subset_sise": 3}, "Did you mean 'subset_size'"),
        ("kid", {"subset_size": "all"}, "at.subset_size='all' must be an integer"),
        ("kid", {"subset_size": True}, "=True must be an integer"),
        ("fd_efficientnet_lite0", {"resolution": 1.5}, "must be an integer or None"),
        ("fid", {"protocols": "50k_trian"}, "'50k_trian' is not a protocol"),
        ("fid", {"protocols": 3}, "must be a list of words"),
        ("fid", {"protocols": ""}, "'' is not a protocol"),
    ],
)
def test_arguments_that_a_metric_does_not_take_are_refused(metric, args, message):
    with pytest.raises(UserError, match=message):
        registry.checked(metric, args, where="at.")


FLAGS = ["--evals=sliced_wasserstein"], ["--evals=kd_efficientnet_lite0"], ["--evals=fid"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([*FLAGS[0], "--variant=clean_fid"], "--variant: no metric that is evaluated takes this"),
        ([*FLAGS[1], "--weights=f.pth"], "--weights: no metric"),
        ([*FLAGS[1], "--unverified"], "--unverified: no metric"),
        ([*FLAGS[0], "--precision=bfloat16"], "--precision: no metric"),
        ([*FLAGS[2], "--resolution=64"], "--resolution: no metric"),
        ([*FLAGS[0], "--config.eval.args.kid.subsets=3"], "eval.args.kid.subsets: no metric"),
        ([*FLAGS[2], "--config.eval.args.kit.subsets=3"], "Did you mean 'kid'"),
        ([*FLAGS[1], "--precision=float16"], "Unknown precision 'float16'"),
        ([*FLAGS[2], "--variant=clean_fidd"], "Did you mean 'clean_fid'"),
        ([*FLAGS[2], "--weights=missing.pth"], "There is no weights file missing.pth"),
        ([*FLAGS[0], "--config.eval.num_samples=3"], "belongs to a workdir"),
        (["--config.eval.args.fd_efficientnet_lite0.protocols=k_test"], "is not a protocol"),
    ],
)
def test_flags_that_cannot_be_are_refused_before_images_are_read(monkeypatch, args, message):
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    monkeypatch.setattr(image_sets, "load", lambda path: pytest.fail("images are read"))
    with pytest.raises(UserError, match=message):
        command(monkeypatch, "--samples=a", "--reference=b", *args)


def test_resolution_and_precision_reach_the_offline_features(tmp_path, folder, monkeypatch):
    seen, path = {}, folder("x", PIXELS)
    settings = config.load(
        "configs/digits.py",
        {"eval.efficientnet_resolution": "96", "eval.efficientnet_precision": "bfloat16"},
    )
    parts = dict(model=None, train=None, test=None, priors=())
    assert runner.context(settings, **parts).extractors["efficientnet_lite0"] == {
        "resolution": 96, "precision": "bfloat16"
    }  # fmt: skip
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    monkeypatch.setattr(evaluate, "compare", lambda *_, **args: seen.update(args) or {})
    command(
        monkeypatch, f"--samples={path}", f"--reference={path}", "--resolution=80",
        "--precision=bfloat16",
    )  # fmt: skip
    assert seen["extractors"]["efficientnet_lite0"] == {"resolution": 80, "precision": "bfloat16"}


def test_metrics_on_features_name_their_extractor():
    for name in ("fid", "fid_infinity", "kid", "prdc", "inception_score"):
        assert extractor_of(name, {}) == "inception_2015"
    for name in ("fd", "fd_infinity", "kd", "prdc", "is"):
        assert extractor_of(f"{name}_efficientnet_lite0", {}) == "efficientnet_lite0"
    assert extractor_of("memorisation", {"extractor": "inception_2015"}) == "inception_2015"
    assert extractor_of("reconstruction", {}) is None


def test_metrics_that_need_a_model_are_refused_for_two_sets():
    data = Dataset(PIXELS, None, "", ())
    ctx = Context.from_images(PIXELS, data)
    with pytest.raises(UserError, match="Metric 'reconstruction' needs a trained model"):
        runner.run(["reconstruction"], ctx)
    with pytest.raises(UserError, match="Metric 'memorization' needs a trained model"):
        runner.run(["memorization"], ctx)
    assert ctx.compared() == {"samples": "samples"}


@pytest.mark.parametrize(
    "args",
    [[], ["--workdir=a", "--samples=b"], ["--samples=b"], ["--workdir=a", "--floor=c"],
     ["--samples=a", "--reference=b", "--checkpoint=3"],
     ["--samples=a", "--reference=b", "--protocols=10k_test"],
     ["--workdir=a", "--seed=1"], ["--workdir=a", "--out=b"]],
)  # fmt: skip
def test_flags_that_do_not_go_together_are_refused(monkeypatch, args):
    with pytest.raises(UserError, match="--samples"):
        command(monkeypatch, *args)


def test_flags_reach_the_evaluation_of_a_workdir(monkeypatch):
    seen = {}
    monkeypatch.setattr("pmjax.cli.cache_compilations", lambda: None)
    monkeypatch.setattr(evaluate.api, "load", lambda workdir: "model")
    checkpoints = []
    monkeypatch.setattr(
        evaluate.snapshots,
        "from_checkpoint",
        lambda workdir, which: checkpoints.append(which) or workdir / "at-50",
    )

    def record_call(workdir, model, **args):
        seen.update(args, workdir=workdir, model=model)
        return {}

    monkeypatch.setattr(evaluate, "evaluate", record_call)
    command(
        monkeypatch, "--workdir=w", "--evals=fid,kid", "--protocols=50k_train", "--weights=f.pth",
        "--variant=clean_fid", "--unverified", "--config.eval.num_samples=9", "--checkpoint=50",
    )  # fmt: skip
    assert seen["overrides"] == {"eval.metrics": "fid,kid", "eval.num_samples": "9"}
    assert seen["protocols"] == ("50k_train",) and checkpoints == ["50"]
    assert seen["workdir"] == Path("w/at-50") and seen["model"] == "model"
    assert seen["extractors"]["inception_2015"] == {
        "weights": Path("f.pth"), "variant": "clean_fid", "verify": False
    }  # fmt: skip


def test_what_is_computed_before_a_metric_fails_is_kept(tmp_path, folder, cheap_features, caplog):
    samples, reference = folder("samples", PIXELS[:12]), folder("reference", PIXELS[12:])
    out = tmp_path / "metrics.json"
    with pytest.raises(UserError, match="'reconstruction' needs a trained model"):
        metrics = ["fd_efficientnet_lite0", "reconstruction"]
        runner.compare(samples, reference, metrics=metrics, out=out)
    found = json.loads(out.read_text())
    assert "fd_efficientnet_lite0/samples" in found["metrics"]
    assert found["evals"] == ["fd_efficientnet_lite0"] and "Stored" in caplog.messages[-1]


@pytest.mark.parametrize("name", [".", "000.png/deep.json", "pipe"])
def test_results_that_cannot_be_written_are_reported_before_anything_is_computed(folder, name):
    path = folder("x", PIXELS)
    os.mkfifo(path / "pipe")
    with pytest.raises(UserError, match="--out=.* cannot be written"):
        runner.compare(path, path, out=path / name)
