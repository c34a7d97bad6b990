"""Inception's graph and its weights' files, against PyTorch; statistics and FID's protocols."""

import collections
import io
import pickle
import struct
import types

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import nn

from pmjax.benchmarks import evaluation
from pmjax.benchmarks.ours import Features
from pmjax.benchmarks.peers import torch_inception
from pmjax.datasets.batches import to_float
from pmjax.errors import UserError
from pmjax.evals import runner
from pmjax.evals.context import Context
from pmjax.evals.features import (
    batches,
    inception_2015,
    inception_graph,
    inception_weights,
    statistics,
)
from pmjax.evals.features.base import extract_features, moments
from tests.evals.moments_distance import frechet_distance

FUN = nn.functional


@pytest.fixture(scope="module")
def twin():
    torch.manual_seed(0)
    net = torch_inception.Twin().eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if isinstance(module, nn.BatchNorm2d):
            for values, low, high in (
                (module.weight.data, 0.5, 1.5), (module.bias.data, -0.2, 0.5),
                (module.running_mean, -0.3, 0.3), (module.running_var, 0.5, 1.5),
            ):  # fmt: skip
                values.uniform_(low, high)
    return net


@pytest.fixture(scope="module")
def weights(twin, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(twin.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photographs():
    images = load_sample_images().images
    return np.stack([image[50:146:2, 200:280:2] for image in images])  # [2, 48, 40, 3]


def resized_like_tensorflow_1(images):
    """Takes each pixel from its upper left neighbour on, one output pixel at a time."""
    _, height, width, _ = images.shape
    out = np.empty((len(images), 299, 299, 3), np.float32)
    for i in range(299):
        top, down = divmod(i * height / 299, 1)
        rows = images[:, int(top)] * (1 - down) + images[:, min(int(top) + 1, height - 1)] * down
        for j in range(299):
            left, right = divmod(j * width / 299, 1)
            out[:, i, j] = rows[:, int(left)] * (1 - right)
            out[:, i, j] += rows[:, min(int(left) + 1, width - 1)] * right
    return out


def resized_by_pillow(image):
    channels = (Image.fromarray(image[..., c].astype(np.float32), mode="F") for c in range(3))
    resized = np.stack([np.asarray(c.resize((299, 299), Image.BICUBIC)) for c in channels])
    return resized.clip(0, 255)


def inputs(images, variant):
    """Returns what the published tools would give their net."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    if variant == "pytorch_fid":
        x = FUN.interpolate(x / 255, size=(299, 299), mode="bilinear", align_corners=False)
        return 2 * x - 1
    if variant == "torch_fidelity":
        x = torch.from_numpy(resized_like_tensorflow_1(images)).permute(0, 3, 1, 2)
    else:
        x = torch.from_numpy(np.stack([resized_by_pillow(image) for image in images]))
    return (x - 128) / 128


def test_clean_fid_clips_what_bicubic_overshoots():
    edges = np.where(np.random.default_rng(0).random((28, 28, 3)) < 0.8, 0, 255).astype(np.uint8)
    resized = inception_2015._by_pillow(edges)
    assert resized.min() == 0 and resized.max() == 255
    np.testing.assert_array_equal(resized, resized_by_pillow(edges).transpose(1, 2, 0))


@pytest.mark.parametrize("variant", inception_2015.VARIANTS)
def test_features_and_logits_agree_with_pytorch(twin, weights, photographs, variant):
    with torch.no_grad():
        expected = twin(inputs(photographs, variant))
        scores = twin.fc(expected).numpy()
    given = {"weights": weights, "verify": False}
    features = extract_features(inception_2015, photographs, variant=variant, batch_size=2, **given)
    assert features.shape == (2, 2048) and features.dtype == np.float32
    assert np.abs(features - expected.numpy()).max() < 1e-4 * np.abs(expected.numpy()).max()
    assert np.linalg.norm(features - expected.numpy()) < 1e-4 * np.linalg.norm(expected.numpy())
    ours = inception_2015.logits(features, bias=True, variant=variant, **given)
    assert np.linalg.norm(ours - scores) < 1e-4 * np.linalg.norm(scores)
    unbiased = inception_2015.logits(features, **given)
    np.testing.assert_allclose(unbiased, ours - twin.fc.bias.detach().numpy(), atol=1e-4)


def test_both_sides_of_the_benchmark_compute_the_same_features(weights, photographs, monkeypatch):
    monkeypatch.setattr(torch, "set_flush_denormal", lambda on: None)  # stays for other tests
    given = {"weights": weights, "images": photographs}
    side = Features(**given)
    peer = torch_inception.Features(**given, cores=torch.get_num_threads(), gpu=False)
    first = peer.about.first
    assert np.linalg.norm(side.about.first - first) < 1e-5 * np.linalg.norm(first)


def test_the_benchmark_s_random_weights_have_the_published_shapes(twin):
    published = twin.state_dict()
    ours = evaluation.kernel_shapes()
    assert ours.keys() == dict(inception_graph.convolutions()).keys()
    for name, (height, width, inside, out) in ours.items():
        assert published[f"{name}.conv.weight"].shape == (out, inside, height, width)


def test_gray_images_are_repeated_and_others_refused(photographs):
    gray = photographs[..., :1]
    for variant in inception_2015.VARIANTS[:2]:
        prepared = [
            inception_2015._prepared(x, variant=variant) for x in (gray, np.repeat(gray, 3, 3))
        ]
        np.testing.assert_array_equal(*prepared)
    alpha = np.zeros((2, 8, 8, 4), np.uint8)
    for images in (alpha, to_float(photographs)):
        with pytest.raises(UserError, match="1 or 3"):
            list(batches.run(None, {}, images, name="Inception", batch_size=2))


@pytest.fixture(scope="module")
def small_state():
    """Arrays under all names, of few values."""
    rng = np.random.default_rng(0)
    state = collections.OrderedDict()
    for name, _ in inception_graph.convolutions():
        state[f"{name}.conv.weight"] = rng.normal(size=(3, 2, 1, 3))
        for part in ("weight", "bias", "running_mean", "running_var"):
            state[f"{name}.bn.{part}"] = rng.uniform(size=3)
    state |= {"fc.weight": rng.normal(size=(7, 5)), "fc.bias": rng.normal(size=7)}
    return {name: value.astype(np.float32) for name, value in state.items()}


def as_pytorch(state, path, **args):
    torch.save({name: torch.from_numpy(value) for name, value in state.items()}, path, **args)


def as_pytorch_of_old(state, path):
    as_pytorch(state, path, _use_new_zipfile_serialization=False)


def as_flax(state, path):
    tree = {"fc": {"kernel": state["fc.weight"].T, "bias": state["fc.bias"]}}
    for name, _ in inception_graph.convolutions():
        node = tree
        for part in name.split("."):
            node = node.setdefault(part, {})
        node["conv"] = {"kernel": state[f"{name}.conv.weight"].transpose(2, 3, 1, 0)}
        parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
        node["bn"] = {theirs: state[f"{name}.bn.{ours}"] for theirs, ours in parts.items()}
    path.write_bytes(pickle.dumps(tree, protocol=4))


def field(number, value):
    """Returns a field of a protocol buffer: a number, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value):
    more = value >> 7
    return bytes([value & 127 | (128 if more else 0)]) + (varint(more) if more else b"")


def as_tensorflow(state, path):
    def const(name, value):
        dims = b"".join(field(2, field(1, size)) for size in value.shape)
        if value.ndim > 1:
            content = field(4, np.ascontiguousarray(value).tobytes())
        else:
            content = field(5, value.tobytes())
        tensor = field(1, 1) + field(2, dims) + content
        attributes = [(b"dtype", field(6, 1)), (b"value", field(8, tensor))]
        entries = b"".join(field(5, field(1, key) + field(2, value)) for key, value in attributes)
        return field(1, field(1, name.encode()) + field(2, b"Const") + entries)

    graph = field(1, field(1, b"input") + field(2, b"Placeholder")) + field(4, field(1, 21))
    for name, scope in inception_graph.convolutions():
        graph += const(f"{scope}/conv2d_params", state[f"{name}.conv.weight"].transpose(2, 3, 1, 0))
        for theirs, ours in (("gamma", "weight"), ("beta", "bias"),
                             ("moving_mean", "running_mean"),
                             ("moving_variance", "running_var")):  # fmt: skip
            graph += const(f"{scope}/batchnorm/{theirs}", state[f"{name}.bn.{ours}"])
    graph += const("softmax/weights", state["fc.weight"].T)
    graph += const("softmax/biases", state["fc.bias"])
    path.write_bytes(graph)


FORMATS = {
    "a.pth": as_pytorch,
    "b.pth": as_pytorch_of_old,
    "c.pickle": as_flax,
    "d.pb": as_tensorflow,
}


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_of_the_weights_gives_the_same_arrays(tmp_path, small_state, name):
    FORMATS[name](small_state, tmp_path / name)
    read, sha256 = inception_weights.read(tmp_path / name, verify=False)
    assert len(sha256) == 64
    for key, value in small_state.items():
        np.testing.assert_array_equal(read[key], value)


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_weights_are_refused(tmp_path, small_state, name):
    path = tmp_path / name
    FORMATS[name](small_state, path)
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(UserError, match="not a readable"):
        inception_weights.read(path, verify=False)


def test_tensorflow_scopes_are_those_of_the_published_conversion():
    scopes = dict(inception_graph.convolutions())
    assert len(scopes) == len(set(scopes.values())) == 94
    assert scopes["Conv2d_4a_3x3"] == "conv_4"
    assert scopes["Mixed_5b.branch5x5_2"] == "mixed/tower/conv_1"
    assert scopes["Mixed_5d.branch_pool"] == "mixed_2/tower_2/conv"
    assert scopes["Mixed_6a.branch3x3dbl_3"] == "mixed_3/tower/conv_2"
    assert scopes["Mixed_6e.branch7x7dbl_5"] == "mixed_7/tower_1/conv_4"
    assert scopes["Mixed_7a.branch7x7x3_4"] == "mixed_8/tower_1/conv_3"
    assert scopes["Mixed_7c.branch3x3_2b"] == "mixed_10/tower/mixed/conv_1"
    assert scopes["Mixed_7c.branch3x3dbl_3a"] == "mixed_10/tower_1/mixed/conv"


def test_our_names_are_those_of_the_published_state_dict(twin):
    ours = {f"{name}.conv.weight" for name, _ in inception_graph.convolutions()}
    assert ours == {name for name in twin.state_dict() if name.endswith("conv.weight")}


def test_weights_other_than_the_published_are_refused_unless_allowed(tmp_path, small_state):
    for name in ("pt_inception-2015-12-05-6726825d.pth", "mine.pth", "mine-12345678.pb"):
        as_pytorch(small_state, tmp_path / name)
        expected = "12345678" if "1234" in name else "6726825d"
        with pytest.raises(UserError, match=f"begins with {expected} and has [0-9a-f]{{16}}"):
            inception_weights.read(tmp_path / name)
    inception_weights.read(tmp_path / "mine.pth", verify=False)
    found = inception_weights.sha256(tmp_path / "mine.pth")
    other = (tmp_path / "mine.pth").rename(tmp_path / f"inception_v3_google-{found[:8]}.pth")
    with pytest.raises(UserError, match=f"begins with 6726825d and has {found[:16]}"):
        inception_weights.read(other)


def test_truncated_weights_are_told_by_their_hash(tmp_path, small_state, monkeypatch):
    path = tmp_path / "pt_inception.pth"
    as_pytorch(small_state, path)
    published = inception_weights.sha256(path)[:8]
    monkeypatch.setattr(inception_weights, "HASH", published)
    inception_weights.read(path)
    path.write_bytes(path.read_bytes()[:-2000])
    found = inception_weights.sha256(path)[:16]
    with pytest.raises(UserError, match=f"begins with {published} and has {found}…: it is trunc"):
        inception_weights.read(path)


def test_weights_of_another_net_are_refused(tmp_path, small_state):
    as_pytorch(small_state, tmp_path / "small.pth")
    as_pytorch({"fc.weight": np.zeros(3)}, tmp_path / "other.pth")
    for name in ("small.pth", "other.pth"):
        with pytest.raises(UserError, match="set of weights"):
            inception_2015.load_params(tmp_path / name, verify=False)


@pytest.mark.parametrize("name", FORMATS)
def test_weights_of_imagenet_s_1000_classes_are_refused(tmp_path, small_state, name):
    last = {"fc.weight": np.zeros((1000, 2048), np.float32), "fc.bias": np.ones(1000, np.float32)}
    FORMATS[name](small_state | last, tmp_path / name)
    with pytest.raises(UserError, match="1000 classes of 2048 features, not 1008 of 2048"):
        inception_2015.load_params(tmp_path / name, verify=False)


def test_a_flax_pickle_without_classes_has_features_and_no_scores(tmp_path, twin):
    state = {name: value.numpy() for name, value in twin.state_dict().items()}
    path = tmp_path / "headless.pickle"
    as_flax(state, path)
    tree = pickle.loads(path.read_bytes())
    del tree["fc"]
    path.write_bytes(pickle.dumps(tree))
    params, last, _ = inception_2015.load_params(path)
    assert last is None and len(params) == 94
    with pytest.raises(UserError, match="lacks the last layer"):
        inception_2015.logits(np.zeros((1, 2048)), weights=path)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return io.open, (str(self.path), "w")


def test_a_hostile_pickle_is_refused_and_not_run(tmp_path):
    path, victim = tmp_path / "weights.pickle", tmp_path / "victim"
    path.write_bytes(pickle.dumps({"fc": Attack(victim)}))
    with pytest.raises(UserError, match="io.open"):
        inception_weights.read(path, verify=False)
    assert not victim.exists()


def test_weights_are_looked_for_in_the_argument_the_variable_the_cache_and_the_network(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(inception_weights, "URL", (tmp_path / "published").as_uri())
    with pytest.raises(UserError, match=r"Put pt_inception-2015-12-05-6726825d.pth") as missing:
        inception_weights.find()
    for way in ("--weights=FILE", "config.eval.inception_weights=FILE", "PMJAX_INCEPTION_WEIGHTS"):
        assert way in str(missing.value)

    (tmp_path / "published").write_bytes(b"something else")
    with pytest.raises(UserError, match="begins with 6726825d"):
        inception_weights.find()
    found = inception_weights.sha256(tmp_path / "published")
    assert not list((tmp_path / "cache" / "inception").iterdir())
    monkeypatch.setattr(inception_weights, "HASH", found[:8])
    cached = inception_weights.find()
    assert cached.read_bytes() == b"something else" and cached.parent.parent == tmp_path / "cache"

    monkeypatch.setattr(inception_weights, "URL", "file:///nowhere")
    assert inception_weights.find() == cached
    given, named = tmp_path / "given", tmp_path / "named"
    for path in (given, named):
        path.touch()
    monkeypatch.setenv("PMJAX_INCEPTION_WEIGHTS", str(named))
    assert inception_weights.find() == named
    assert inception_weights.find(given) == given
    with pytest.raises(UserError, match="missing .--weights or --config.eval.inception_weights"):
        inception_weights.find(tmp_path / "missing")


def test_moments_of_parts_are_exact_far_from_zero():
    x = np.random.default_rng(0).normal(1000, 0.01, (3000, 5)).astype(np.float32)
    mean, cov, count = moments([x[:7], x[7:2000], x[2000:]])
    assert count == 3000
    np.testing.assert_allclose(mean, x.mean(0, dtype=np.float64), rtol=1e-12)
    np.testing.assert_allclose(cov, np.cov(x.astype(np.float64).T), rtol=1e-9, atol=1e-13)


def test_statistics_of_other_features_are_refused(tmp_path):
    about = {"extractor": "inception_2015", "variant": "clean_fid"}
    path = tmp_path / "s.npz"
    statistics.write(path, (np.ones(3), np.eye(3), 9), about)
    mean, cov, count = statistics.read(path, dim=3, about=about)
    assert count == 9 and mean.sum() == 3 and cov.trace() == 3
    with pytest.raises(UserError, match="these features have 2048 dimensions"):
        statistics.read(path, dim=2048)
    with pytest.raises(UserError, match="variant clean_fid, and here it is pytorch_fid"):
        statistics.read(path, dim=3, about=about | {"variant": "pytorch_fid"})


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, "cannot be read"),
        ({"mu": np.full(2, np.nan), "sigma": np.eye(2)}, "NaN"),
        ({"mu": np.zeros(2), "sigma": np.array([[1, 2], [0, 1]])}, "not a covariance"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "not a covariance"),
        ({"mu": np.zeros(2), "sigma": np.zeros((2, 3))}, r"sizes \[2\] and \[2, 3\]"),
        ({"mu": np.zeros(2), "sigma": np.ones(2)}, r"sizes \[2\] and \[2\]"),
        ({"mu": np.zeros(2), "sigma": np.eye(2) + 1j}, "cannot be read .*complex"),
        ({"mu": np.full(2, 1j), "sigma": np.eye(2)}, "cannot be read .*complex"),
        ({"mu": np.array(["1", "2"]), "sigma": np.eye(2)}, "cannot be read .*array of <U1"),
        ({"mu": np.array([None] * 2), "sigma": np.eye(2)}, "cannot be read .*allow_pickle"),
        (
            {"mu": np.zeros(2), "sigma": np.eye(2), "num": [5, 6]},
            r"'num' is \[5, 6\], not a number",
        ),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "num": -1}, "'num' is -1, not a number"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "num": np.nan}, "'num' is nan, not a number"),
        ({"mu": np.zeros(2), "sigma": np.eye(2), "num": ""}, "'num' is , not a number"),
    ],
)
def test_statistics_that_are_none_are_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "s.npz", **arrays)
    with pytest.raises(UserError, match=message):
        statistics.read(tmp_path / "s.npz", dim=2)


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, 0),
        ({"num": 5}, 5),
        ({"num": [5]}, 5),
        ({"num": [[5.0]]}, 5),
        ({"num": []}, 0),
        ({"num": 0}, 0),
        ({"about": "by another tool"}, 0),
        ({"about": "[1]"}, 0),
        ({"mu": np.array([[0.0, 1.0]])}, 0),
        ({"mu": np.float16([0, 1]), "sigma": np.eye(2, dtype=int)}, 0),
        ({"sigma": np.eye(2) + 1e-12j}, 0),  # of a matrix root
        ({"arr_0": np.zeros((2, 4, 4, 3), np.uint8), "mu_s": np.ones(3), "sigma_s": np.eye(3)}, 0),
        ({"arr_0": np.array([None])}, 0),  # never unpickled
    ],
    ids=str,
)
def test_published_statistics_are_read(tmp_path, more, expected):
    np.savez(tmp_path / "s.npz", **{"mu": np.arange(2.0), "sigma": np.eye(2)} | more)
    mean, cov, count = statistics.read(tmp_path / "s.npz", dim=2, about={"variant": "any"})
    np.testing.assert_array_equal(mean, [0, 1])
    np.testing.assert_array_equal(cov, np.eye(2))
    assert count == expected and statistics.dimensions(tmp_path / "s.npz") == 2


def test_reference_statistics_are_computed_once_for_a_content(tmp_path, monkeypatch):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path))
    calls = []

    def make():
        calls.append(1)
        return np.zeros(2), np.eye(2), 5

    about = {"extractor": "any", "weights": "0" * 64}
    for fingerprint in ("one", "one", "other", ""):
        statistics.cached(about, fingerprint, make, 2)
    assert len(calls) == 3
    (file, *_) = (tmp_path / "statistics").glob("*.npz")
    file.write_bytes(b"damaged")
    for fingerprint in ("one", "other"):
        statistics.cached(about, fingerprint, make, 2)
    assert len(calls) == 4


class Model:
    """Reconstructs images darker, and samples from noise."""

    def encode(self, x):
        return to_float(x).reshape(len(x), -1)

    def decode(self, z):
        return z.reshape(-1, 4, 4, 3)

    def reconstruct(self, x):
        return to_float(x) * np.float32(0.5)

    def sample(self, num, *, seed, prior):
        return np.random.default_rng(seed).uniform(-1, 1, (num, 4, 4, 3)).astype(np.float32)


@pytest.fixture
def tiny_inception(monkeypatch):
    """Features that cost nothing: the first two pixels."""

    def stream(images, **args):
        for part in [images] if hasattr(images, "shape") else images:
            yield part.reshape(len(part), -1)[:, :6].astype(np.float32)

    monkeypatch.setattr(inception_2015, "stream", stream)
    monkeypatch.setattr(inception_2015, "DIM", 6)
    monkeypatch.setattr(
        inception_2015,
        "identity",
        lambda variant="pytorch_fid", **_: {"weights": "w", "variant": variant},
    )


def split(num, seed, fingerprint=""):
    data = np.random.default_rng(seed).integers(0, 256, (num, 4, 4, 3), np.uint8)
    return types.SimpleNamespace(data=data, labels=None, fingerprint=fingerprint, skipped=())


def context(**args):
    given = dict(model=Model(), train=split(60, 0), test=split(40, 1), priors=("own", "gmm"))
    return Context(**given | args)


def test_fid_names_its_protocol_and_has_its_floor(tiny_inception):
    ctx = context()
    values = runner.run(["fid"], ctx, {"fid": {"protocols": ("30_test", "50_train")}})
    head = "fid/30_test/pytorch_fid/"
    common = ("own", "gmm", "floor", "recon", "midpoints")
    expected = {f"{head}{what}" for what in (*common, "recon_train")}
    expected |= {f"fid/50_train/pytorch_fid/{what}" for what in (*common, "recon_test")}
    spreads = {f"{key}/spread" for key in expected}
    assert set(values) == expected | spreads | {"fid/50_train/pytorch_fid/flag/floor_images"}
    assert all(values[key] > 0 for key in spreads)
    assert values["fid/50_train/pytorch_fid/flag/floor_images"] == 40

    def moments(images):
        x = images.reshape(len(images), -1)[:, :6].astype(np.float64)
        return x.mean(0), np.cov(x.T)

    reference = moments(ctx.test.data)
    floor = moments(ctx.train.data[ctx.subset("train", 30)])
    assert values[head + "floor"] == pytest.approx(frechet_distance(*floor, *reference))
    own = moments(ctx.draw("own", 30, 0))
    assert values[head + "own"] == pytest.approx(frechet_distance(*own, *reference))
    assert ctx.used == {"inception_2015": {"weights": "w", "variant": "pytorch_fid"}}


def test_fid_of_the_evaluation_s_own_sets_is_that_of_the_same_protocol(tiny_inception):
    protocols = {"fid": {"protocols": ("30_test",)}}
    streamed = runner.run(["fid"], context(), protocols)
    shared = runner.run(["fid"], context(num_samples=30), protocols)
    assert shared == pytest.approx(streamed, rel=1e-9)


def test_fid_computes_a_reference_once_for_two_runs(tiny_inception, tmp_path, monkeypatch):
    monkeypatch.setenv("PMJAX_CACHE", str(tmp_path))
    stream, whole = inception_2015.stream, []

    def counted(images, **args):
        if hasattr(images, "shape") and len(images) == 60:  # all training images
            whole.append(args)
        return stream(images, **args)

    monkeypatch.setattr(inception_2015, "stream", counted)

    def run(variant="pytorch_fid", fingerprint="train"):
        args = {"inception_2015": {"variant": variant}}
        ctx = context(train=split(60, 0, fingerprint), extractors=args)
        return runner.run(["fid"], ctx, {"fid": {"protocols": ("30_train",)}})

    assert run() == run() and len(whole) == 1
    run(variant="torch_fidelity")
    run(fingerprint="other")
    assert len(whole) == 3


def test_fewer_images_than_features_are_flagged(tiny_inception, caplog):
    values = runner.run(["fid"], context(), {"fid": {"protocols": ("5_test",)}})
    assert values["fid/5_test/pytorch_fid/flag/fewer_images_than_features"] == 5
    assert "large bias" in caplog.text


def test_fid_takes_published_statistics_of_the_reference(tiny_inception, tmp_path):
    reference, samples = split(50, 2).data, split(40, 3).data
    x = reference.reshape(50, -1)[:, :6]
    np.savez(tmp_path / "s.npz", mu=x.mean(0), sigma=np.cov(x.T.astype(np.float64)))
    ctx = Context.from_images(samples, tmp_path / "s.npz")
    whole = Context.from_images(samples, types.SimpleNamespace(data=reference, fingerprint=""))
    values = runner.run(["fid"], ctx)
    key = "fid/40_samples/pytorch_fid/samples"
    assert list(values) == [key, f"{key}/spread"]
    assert values == pytest.approx(runner.run(["fid"], whole), rel=1e-6)
    with pytest.raises(UserError, match="'kid' needs the reference's images"):
        runner.run(["kid"], ctx)


def test_the_context_s_arguments_reach_the_extractor(tiny_inception):
    ctx = context(extractors={"inception_2015": {"variant": "clean_fid"}})
    values = runner.run(["fid"], ctx, {"fid": {"protocols": ("20_test",)}})
    assert all(key.startswith("fid/20_test/clean_fid/") for key in values)


@pytest.mark.parametrize("protocol", ["50k", "0_test", "k_train", "10k_val"])
def test_an_unknown_protocol_is_refused(tiny_inception, protocol):
    with pytest.raises(UserError, match="is not a protocol of FID"):
        runner.run(["fid"], context(), {"fid": {"protocols": (protocol,)}})


def test_structures_of_the_protocol_buffer_that_are_not_float_constants_are_skipped():
    tensor = field(1, 3) + field(2, b"") + field(7, 5)  # an int32
    node = (
        field(1, b"number")
        + field(2, b"Const")
        + field(5, field(1, b"value") + field(2, field(8, tensor)))
    )
    fixed = varint(3 << 3 | 5) + struct.pack("<f", 1.0) + varint(9 << 3 | 1) + bytes(8)
    assert inception_weights.constants_of(field(1, node + fixed) + fixed) == {}
