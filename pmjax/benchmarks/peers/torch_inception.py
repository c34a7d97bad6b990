"""The Inception graph of 2015 in PyTorch, with the published names and sizes of layers.

It follows pytorch-fid and torch-fidelity and shares no code with ours, which is tested against it.
"""

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmjax.benchmarks.peers import torch_arrays
from pmjax.benchmarks.process import About, Block, repeat
from pmjax.evals.features import inception_weights

SIDE = 299  # pixels


MEAN = nn.AvgPool2d(3, 1, 1, count_include_pad=False)  # of 3×3 neighbors, without padding
HALVE, LARGEST = nn.MaxPool2d(3, 2), nn.MaxPool2d(3, 1, 1)
WIDE, HIGH = (1, 7), (7, 1)


class Conv(nn.Module):
    """A convolution, its BatchNorm and ReLU; with stride 1, it preserves height and width."""

    def __init__(
        self, width: int, out: int, kernel: int | tuple[int, int], stride: int = 1,
        padding: str | None = None,
    ):  # fmt: skip
        super().__init__()
        padding = padding or ("same" if stride == 1 else "valid")
        self.conv = nn.Conv2d(width, out, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Concatenates the outputs of branches: chains of layers, where a pair of layers forks the end.

    The convolutions of a branch are submodules BRANCH_1, BRANCH_2 and so on, or BRANCH if there is
    one; those of a pair are BRANCH_2a and BRANCH_2b.
    """

    def __init__(self, **branches: tuple):
        super().__init__()
        self.branches = tuple(branches.values())
        for branch, layers in branches.items():
            convs = [layer for layer in layers if isinstance(layer, Conv | tuple)]
            for index, layer in enumerate(convs, 1):
                name = f"{branch}_{index}" if len(convs) > 1 else branch
                ends = zip("ab", layer, strict=True) if isinstance(layer, tuple) else [("", layer)]
                for end, conv in ends:
                    self.add_module(name + end, conv)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        outputs = []
        for *layers, last in self.branches:
            y = x
            for layer in layers:
                y = layer(y)
            outputs += [end(y) for end in (last if isinstance(last, tuple) else (last,))]
        return torch.cat(outputs, 1)


def block_a(width: int, pool: int) -> Mixed:
    """Returns one of Mixed_5b to Mixed_5d."""
    return Mixed(
        branch1x1=(Conv(width, 64, 1),),
        branch5x5=(Conv(width, 48, 1), Conv(48, 64, 5)),
        branch3x3dbl=(Conv(width, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3)),
        branch_pool=(MEAN, Conv(width, pool, 1)),
    )


def block_b() -> Mixed:
    """Returns Mixed_6a."""
    return Mixed(
        branch3x3=(Conv(288, 384, 3, stride=2),),
        branch3x3dbl=(Conv(288, 64, 1), Conv(64, 96, 3), Conv(96, 96, 3, stride=2)),
        branch_pool=(HALVE,),
    )


def block_c(n: int) -> Mixed:
    """Returns one of Mixed_6b to Mixed_6e, with `n` channels inside."""
    start = (Conv(768, n, 1), Conv(n, n, HIGH), Conv(n, n, WIDE), Conv(n, n, HIGH))
    return Mixed(
        branch1x1=(Conv(768, 192, 1),),
        branch7x7=(Conv(768, n, 1), Conv(n, n, WIDE), Conv(n, 192, HIGH)),
        branch7x7dbl=(*start, Conv(n, 192, WIDE)),
        branch_pool=(MEAN, Conv(768, 192, 1)),
    )


def block_d() -> Mixed:
    """Returns Mixed_7a."""
    seven = (Conv(768, 192, 1), Conv(192, 192, WIDE), Conv(192, 192, HIGH))
    return Mixed(
        branch3x3=(Conv(768, 192, 1), Conv(192, 320, 3, stride=2)),
        branch7x7x3=(*seven, Conv(192, 192, 3, stride=2)),
        branch_pool=(HALVE,),
    )


def block_e(width: int, pool: nn.Module) -> Mixed:
    """Returns Mixed_7b or, with another pool, Mixed_7c."""

    def fork() -> tuple[Conv, Conv]:
        return Conv(384, 384, (1, 3)), Conv(384, 384, (3, 1))

    return Mixed(
        branch1x1=(Conv(width, 320, 1),),
        branch3x3=(Conv(width, 384, 1), fork()),
        branch3x3dbl=(Conv(width, 448, 1), Conv(448, 384, 3), fork()),
        branch_pool=(pool, Conv(width, 192, 1)),
    )


class Twin(nn.Module):
    """The graph of pytorch-fid."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, padding="valid")
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, padding="valid")
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = map(block_a, (192, 256, 288), (32, 64, 64))
        self.Mixed_6a = block_b()
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(
            block_c, (128, 160, 160, 192)
        )
        self.Mixed_7a = block_d()
        self.Mixed_7b, self.Mixed_7c = block_e(1280, MEAN), block_e(2048, LARGEST)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 3, H, W] to [N, 2048]."""
        x = HALVE(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))))
        x = HALVE(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)))
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))


class Features:
    """The features that `pmjax.bench --evaluation` measures, resized as in torch-fidelity."""

    compiled = False  # by torch.compile

    def __init__(self, *, weights: Path, images: np.ndarray, cores: int, gpu: bool):
        """Builds the net from a file of weights; computes the features of uint8 [B, H, W, 3]."""
        torch.backends.cudnn.allow_tf32 = False  # as JAX
        self._gpu, (self._where, device) = gpu, torch_arrays.set_up(cores=cores, gpu=gpu)
        state, _ = inception_weights.read(weights, verify=False)
        tensors = {name: torch.tensor(value) for name, value in state.items()}
        self._net = Twin()
        self._net.load_state_dict(tensors, strict=False)  # the last layer may be missing
        self._net.eval().to(self._where)
        if gpu:
            self._net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._images = torch.from_numpy(np.moveaxis(images, -1, 1).copy())
        began = time.perf_counter()
        if self.compiled:
            self._net.compile()
        first = self._features()
        spent = time.perf_counter() - began
        self.about = About(
            first=first,
            device=device,
            threads=cores,
            versions={"torch": torch.__version__},
            compile_s=max(0.0, spent - self.block(0).seconds) if self.compiled else None,
        )

    @torch.inference_mode()
    def _features(self) -> np.ndarray:
        x = like_tensorflow_1(self._images.to(self._where).float())
        if self._gpu:
            x = x.contiguous(memory_format=torch.channels_last)
        return self._net((x - 128) / 128).cpu().numpy()

    def block(self, seconds: float) -> Block:
        """Computes features for about this long."""
        return repeat(self._features, seconds, units=len(self._images))


def like_tensorflow_1(x: Tensor) -> Tensor:
    """Resizes float [N, C, H, W] to 299×299 bilinearly, aligned at the upper left corner."""
    for axis in (2, 3):
        place = torch.arange(SIDE, device=x.device) * (x.shape[axis] / SIDE)
        below = place.long()
        above = (below + 1).clamp_max(x.shape[axis] - 1)
        share = (place - below).view((-1, 1) if axis == 2 else (1, -1))
        x = torch.lerp(x.index_select(axis, below), x.index_select(axis, above), share)
    return x
