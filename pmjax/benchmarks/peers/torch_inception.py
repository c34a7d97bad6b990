"""The Inception graph of 2015 in PyTorch, with the published names and sizes of layers.

It follows pytorch-fid and torch-fidelity and shares no code with ours, which is tested against it.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmjax.benchmarks.peers import torch_arrays
from pmjax.benchmarks.process import About, Block, repeat
from pmjax.evals.features import inception_weights

SIDE = 299  # pixels


class Conv(nn.Module):
    """A convolution, its BatchNorm and ReLU."""

    def __init__(self, width: int, out: int, kernel: int | tuple[int, int], **args: Any):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, bias=False, **args)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        return F.relu(self.bn(self.conv(x)), inplace=True)


def mean_pool(x: Tensor) -> Tensor:
    """Averages 3×3 neighbors, without padding."""
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class A(nn.Module):
    """Mixed_5b to Mixed_5d."""

    def __init__(self, width: int, pool: int):
        super().__init__()
        self.branch1x1 = Conv(width, 64, 1)
        self.branch5x5_1 = Conv(width, 48, 1)
        self.branch5x5_2 = Conv(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = Conv(width, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, padding=1)
        self.branch_pool = Conv(width, pool, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(mean_pool(x))], 1)


class B(nn.Module):
    """Mixed_6a."""

    def __init__(self, width: int):
        super().__init__()
        self.branch3x3 = Conv(width, 384, 3, stride=2)
        self.branch3x3dbl_1 = Conv(width, 64, 1)
        self.branch3x3dbl_2 = Conv(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96, 96, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, 2)], 1)


class C(nn.Module):
    """Mixed_6b to Mixed_6e."""

    def __init__(self, inside: int):
        super().__init__()
        wide: dict[str, Any] = {"kernel": (1, 7), "padding": (0, 3)}
        high: dict[str, Any] = {"kernel": (7, 1), "padding": (3, 0)}
        self.branch1x1 = Conv(768, 192, 1)
        self.branch7x7_1 = Conv(768, inside, 1)
        self.branch7x7_2 = Conv(inside, inside, **wide)
        self.branch7x7_3 = Conv(inside, 192, **high)
        self.branch7x7dbl_1 = Conv(768, inside, 1)
        self.branch7x7dbl_2 = Conv(inside, inside, **high)
        self.branch7x7dbl_3 = Conv(inside, inside, **wide)
        self.branch7x7dbl_4 = Conv(inside, inside, **high)
        self.branch7x7dbl_5 = Conv(inside, 192, **wide)
        self.branch_pool = Conv(768, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(mean_pool(x))], 1)


class D(nn.Module):
    """Mixed_7a."""

    def __init__(self):
        super().__init__()
        self.branch3x3_1 = Conv(768, 192, 1)
        self.branch3x3_2 = Conv(192, 320, 3, stride=2)
        self.branch7x7x3_1 = Conv(768, 192, 1)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(192, 192, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, 2)], 1)


class E(nn.Module):
    """Mixed_7b, and Mixed_7c with another pool."""

    def __init__(self, width: int, pool: Callable[[Tensor], Tensor]):
        super().__init__()
        wide: dict[str, Any] = {"kernel": (1, 3), "padding": (0, 1)}
        high: dict[str, Any] = {"kernel": (3, 1), "padding": (1, 0)}
        self.pool = pool
        self.branch1x1 = Conv(width, 320, 1)
        self.branch3x3_1 = Conv(width, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = Conv(384, 384, **wide), Conv(384, 384, **high)
        self.branch3x3dbl_1 = Conv(width, 448, 1)
        self.branch3x3dbl_2 = Conv(448, 384, 3, padding=1)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = Conv(384, 384, **wide), Conv(384, 384, **high)
        self.branch_pool = Conv(width, 192, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C', H', W']."""
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        parts = [self.branch1x1(x), self.branch3x3_2a(three), self.branch3x3_2b(three)]
        parts += [self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)]
        return torch.cat([*parts, self.branch_pool(self.pool(x))], 1)


class Twin(nn.Module):
    """The graph of pytorch-fid."""

    def __init__(self):
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32, 32, 3)
        self.Conv2d_2b_3x3 = Conv(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(64, 80, 1)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = A(192, 32), A(256, 64), A(288, 64)
        self.Mixed_6a = B(288)
        self.Mixed_6b, self.Mixed_6c, self.Mixed_6d, self.Mixed_6e = map(C, (128, 160, 160, 192))
        self.Mixed_7a = D()
        self.Mixed_7b = E(1280, mean_pool)
        self.Mixed_7c = E(2048, lambda x: F.max_pool2d(x, 3, 1, 1))
        self.fc = nn.Linear(2048, 1008)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, 3, H, W] to [N, 2048]."""
        x = F.max_pool2d(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x))), 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        for name, block in self.named_children():
            x = block(x) if name.startswith("Mixed") else x
        return x.mean((2, 3))


class Features:
    """The features that `pmjax.bench --evaluation` measures, resized as in torch-fidelity."""

    compiled = False  # by torch.compile

    def __init__(self, *, weights: Path, images: np.ndarray, cores: int, gpu: bool):
        """Builds the net and computes the features once.

        Args:
          weights: a file that `pmjax.evals.features.inception_weights` reads.
          images: a batch, uint8 [B, H, W, 3].
          cores: number of CPU threads.
          gpu: whether to run on the GPU.
        """
        torch.set_num_threads(cores)
        torch.set_flush_denormal(True)  # as XLA does
        torch.backends.cudnn.allow_tf32 = False  # as JAX
        self._gpu, (self._where, device) = gpu, torch_arrays.device(gpu)
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

    def _work(self) -> int:
        self._features()
        return len(self._images)

    def block(self, seconds: float) -> Block:
        """Computes features for about this long."""
        return repeat(self._work, seconds)


def like_tensorflow_1(x: Tensor) -> Tensor:
    """Resizes float [N, C, H, W] to 299×299 bilinearly, aligned at the upper left corner."""
    for axis in (2, 3):
        place = torch.arange(SIDE, device=x.device) * (x.shape[axis] / SIDE)
        below = place.long()
        above = (below + 1).clamp_max(x.shape[axis] - 1)
        share = (place - below).view((-1, 1) if axis == 2 else (1, -1))
        x = torch.lerp(x.index_select(axis, below), x.index_select(axis, above), share)
    return x
