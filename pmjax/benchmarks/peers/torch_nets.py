"""The nets of `pmjax.nets` as PyTorch modules.

Images are NCHW. Submodules have the names of their Flax counterparts, so that arrays match by path.
Where a layer reads or writes flattened pixels, its `inputs` or `outputs` map its positions to
Flax's: the weights are reordered once, instead of the activations at each call.
"""

from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Shape = tuple[int, ...]
Order = np.ndarray | slice


def channels_first(height: int, width: int, channels: int) -> np.ndarray:
    """Returns the positions in flattened [H, W, C] of the entries of flattened [C, H, W]."""
    return (
        np.arange(height * width * channels)
        .reshape(height, width, channels)
        .transpose(2, 0, 1)
        .ravel()
    )


def reordered(
    layer: Any, *, inputs: Order = slice(None), outputs: Order = slice(None)
) -> nn.Module:
    """Attaches the Flax positions of a layer's inputs and outputs to it."""
    layer.inputs, layer.outputs = inputs, outputs
    return layer


class _Spectral(nn.Module):
    """A layer divided by its largest singular value, with one power iteration per call.

    `u` is updated in training mode only. PyTorch's own spectral norm starts the iteration on the
    other side, so that its numbers differ from Flax's.
    """

    u: Tensor
    weight: Tensor

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register_buffer("u", torch.ones(self.weight.shape[0]))

    def normalized(self) -> Tensor:
        """Returns the weight divided by its largest singular value."""
        matrix = self.weight.flatten(1)
        with torch.no_grad():
            v = F.normalize(torch.mv(matrix.t(), self.u), dim=0, eps=1e-12)
            u = F.normalize(torch.mv(matrix, v), dim=0, eps=1e-12)
            if self.training:
                self.u.copy_(u)
        return self.weight / torch.dot(u, torch.mv(matrix, v))


class SpectralLinear(_Spectral, nn.Linear):
    """Linear layer with spectral norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, inputs] to [N, features]."""
        return F.linear(x, self.normalized(), self.bias)


class SpectralConv(_Spectral, nn.Conv2d):
    """Convolution with spectral norm."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, features, H, W]."""
        return F.conv2d(x, self.normalized(), self.bias, padding=self.padding)


def conv(channels: int, features: int, kernel: int = 3, *, spectral: bool = False) -> nn.Conv2d:
    """Returns a convolution that preserves height and width."""
    layer: type[nn.Conv2d] = SpectralConv if spectral else nn.Conv2d
    return layer(channels, features, kernel, padding=kernel // 2)


class DBlock(nn.Module):
    """Discriminator block of `pmjax.nets.resnet`."""

    def __init__(
        self, channels: int, features: int, down: bool = False, *, optimized: bool = False,
        spectral: bool = False,
    ):  # fmt: skip
        super().__init__()
        hidden = features if optimized else channels
        self.Conv_0 = conv(channels, hidden, spectral=spectral)
        self.Conv_1 = conv(hidden, features, spectral=spectral)
        changes = down or channels != features
        self.Conv_2 = conv(channels, features, 1, spectral=spectral) if changes else None
        self.down, self.optimized = down, optimized

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, features, H, W], or to half of H and W."""
        h = self.Conv_1(F.relu(self.Conv_0(x if self.optimized else F.relu(x))))
        if self.down:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.Conv_2 is None else self.Conv_2(x))


class GBlock(nn.Module):
    """Generator block of `pmjax.nets.resnet`."""

    def __init__(self, channels: int, features: int, up: bool = False, *, batch_norm: bool = False):
        super().__init__()
        self.BatchNorm_0 = ImageNorm(channels) if batch_norm else nn.Identity()
        self.BatchNorm_1 = ImageNorm(features) if batch_norm else nn.Identity()
        self.Conv_0 = conv(channels, features)
        self.Conv_1 = conv(features, features)
        self.Conv_2 = conv(channels, features, 1) if up or channels != features else None
        self.up = up

    def _grow(self, x: Tensor) -> Tensor:
        if not self.up:
            return x
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, features, H, W], or to twice H and W."""
        h = self.Conv_0(self._grow(F.relu(self.BatchNorm_0(x))))
        h = self.Conv_1(F.relu(self.BatchNorm_1(h)))
        return h + (x if self.Conv_2 is None else self._grow(self.Conv_2(x)))


class _Norm(_BatchNorm):
    """BatchNorm by the batch's statistics; running statistics are updated in training mode.

    The running variance is biased, as in Flax.
    """

    momentum: float
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, …] to the same shape."""
        if self.training:
            with torch.no_grad():
                over = [axis for axis in range(x.ndim) if axis != 1]
                var, mean = torch.var_mean(x.to(self.running_mean.dtype), over, correction=0)
                self.running_mean.lerp_(mean, self.momentum)
                self.running_var.lerp_(var, self.momentum)
        return F.batch_norm(x, None, None, self.weight, self.bias, training=True, eps=self.eps)


class ImageNorm(_Norm, nn.BatchNorm2d):
    """BatchNorm of images."""


class VectorNorm(_Norm, nn.BatchNorm1d):
    """BatchNorm of vectors."""


class Trunk(nn.Module):
    """Maps an image to features at 1 / (2·patch) of its height and width."""

    def __init__(self, channels: int, width: int, blocks: int, patch: int):
        super().__init__()
        self.patch, self.depth = patch, 1 + blocks
        self.Conv_0 = reordered(
            conv(channels * patch**2, width), inputs=channels_first(patch, patch, channels)
        )
        self.DBlock_0 = DBlock(width, 2 * width, down=True)
        for index in range(1, self.depth):
            self.add_module(f"DBlock_{index}", DBlock(2 * width, 2 * width))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, 2·width, H / 2·patch, W / 2·patch]."""
        x = self.Conv_0(F.pixel_unshuffle(x, self.patch))
        for index in range(self.depth):
            x = getattr(self, f"DBlock_{index}")(x)
        return F.relu(x)


class ConvNet(nn.Module):
    """E before its BatchNorm, and d: a trunk and a linear layer."""

    def __init__(self, shape: Shape, features: int, *, width: int, blocks: int, patch: int):
        super().__init__()
        height, wide, channels = shape
        size = (height // (2 * patch), wide // (2 * patch), 2 * width)
        self._Trunk_0 = Trunk(channels, width, blocks, patch)
        self.Dense_0 = reordered(nn.Linear(prod(size), features), inputs=channels_first(*size))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, features]."""
        return self.Dense_0(self._Trunk_0(x).flatten(1))


class ConvDecoder(nn.Module):
    """G of `pmjax.nets.resnet`."""

    per_example = True

    def __init__(self, shape: Shape, latent_dim: int, *, width: int, blocks: int, patch: int):
        super().__init__()
        height, wide, channels = shape
        self.size = (2 * width, height // (2 * patch), wide // (2 * patch))
        self.patch, self.depth = patch, blocks + 1
        order = channels_first(*self.size[1:], self.size[0])
        self.Dense_0 = reordered(nn.Linear(latent_dim, prod(self.size)), outputs=order)
        for index in range(blocks):
            self.add_module(f"GBlock_{index}", GBlock(2 * width, 2 * width))
        self.add_module(f"GBlock_{blocks}", GBlock(2 * width, width, up=True))
        self.Conv_0 = reordered(
            conv(width, patch**2 * channels), outputs=channels_first(patch, patch, channels)
        )

    def forward(self, z: Tensor) -> Tensor:
        """Maps [N, latent_dim] to [N, C, H, W]."""
        x = self.Dense_0(z).unflatten(1, self.size)
        for index in range(self.depth):
            x = getattr(self, f"GBlock_{index}")(x)
        return torch.tanh(F.pixel_shuffle(self.Conv_0(F.relu(x)), self.patch))


class MLP(nn.Module):
    """E before its BatchNorm, G and d of `pmjax.nets.mlp`: a perceptron between two shapes."""

    per_example = True

    def __init__(self, shape: Shape, features: Shape, *, width: int, layers: int):
        super().__init__()
        self.features, self.depth = features, layers
        sizes = [prod(shape), *[width] * layers, prod(features)]
        orders = [_flat_order(shape), *[slice(None)] * layers, _flat_order(features)]
        self.MLP_0 = nn.ModuleDict(
            {
                f"Dense_{index}": reordered(
                    nn.Linear(sizes[index], sizes[index + 1]),
                    inputs=orders[index] if index == 0 else slice(None),
                    outputs=orders[index + 1] if index == layers else slice(None),
                )
                for index in range(layers + 1)
            }
        )

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, …] to [N, features]; images are NCHW, and output images are in [-1, 1]."""
        x = x.flatten(1)
        for index in range(self.depth):
            x = F.relu(self.MLP_0[f"Dense_{index}"](x))
        x = self.MLP_0[f"Dense_{self.depth}"](x)
        if len(self.features) == 3:
            height, width, channels = self.features
            return torch.tanh(x.unflatten(1, (channels, height, width)))
        return x


def _flat_order(shape: Shape) -> Order:
    return channels_first(*shape) if len(shape) == 3 else slice(None)


class LatentBatchNorm(nn.Module):
    """Equation (11)."""

    def __init__(self, features: int, *, affine: bool, momentum: float):
        super().__init__()
        self.BatchNorm_0 = VectorNorm(features, momentum=1 - momentum, affine=affine)

    def forward(self, z: Tensor) -> Tensor:
        """Maps [N, d] to [N, d]."""
        return self.BatchNorm_0(z)


class Embedding(nn.Module):
    """E and its BatchNorm."""

    def __init__(self, trunk: nn.Module, norm: nn.Module | None):
        super().__init__()
        self.trunk, self.norm = trunk, norm

    def forward(self, x: Tensor) -> Tensor:
        """Maps examples to z [N, d]."""
        z = self.trunk(x)
        return z if self.norm is None else self.norm(z)


class LatentGenerator(nn.Module):
    """Maps z' [N, p] to embeddings [N, latent_dim]: g."""

    def __init__(self, base_dim: int, latent_dim: int, width: int, blocks: int):
        super().__init__()
        self.blocks = blocks
        self.enter, self.leave = nn.Linear(base_dim, width), nn.Linear(width, latent_dim)
        for index in range(2 * blocks):
            self.add_module(f"Dense_{index}", nn.Linear(width, width))

    def forward(self, z: Tensor) -> Tensor:
        """Applies dense, residual blocks, relu, dense."""
        x = self.enter(z)
        for index in range(0, 2 * self.blocks, 2):
            h = getattr(self, f"Dense_{index}")(F.relu(x))
            x = x + getattr(self, f"Dense_{index + 1}")(F.relu(h))
        return self.leave(F.relu(x))


class LatentCritic(nn.Module):
    """Maps embeddings [N, d] to one number each: D."""

    def __init__(self, latent_dim: int, width: int, blocks: int, spectral_norm: bool):
        super().__init__()
        self.blocks = blocks
        layer: type[nn.Linear] = SpectralLinear if spectral_norm else nn.Linear
        sizes = [latent_dim, *[width] * (2 * blocks + 1), 1]
        for index in range(2 * blocks + 2):
            self.add_module(f"Dense_{index}", layer(sizes[index], sizes[index + 1]))

    def forward(self, z: Tensor) -> Tensor:
        """Applies dense, residual blocks, relu, dense."""
        x = getattr(self, "Dense_0")(z)  # noqa: B009  (mypy knows no modules added by name)
        for index in range(1, 2 * self.blocks + 1, 2):
            h = getattr(self, f"Dense_{index}")(F.relu(x))
            x = x + getattr(self, f"Dense_{index + 1}")(F.relu(h))
        return getattr(self, f"Dense_{2 * self.blocks + 1}")(F.relu(x))[:, 0]


def make_resnet(*, net_args: dict, shape: Shape, latent_dim: int) -> dict[str, nn.Module]:
    """Returns E before its BatchNorm, G and d for examples of a shape (NHWC)."""
    args = {name: net_args[name] for name in ("width", "blocks", "patch")}
    return {
        "E": ConvNet(shape, latent_dim, **args),
        "G": ConvDecoder(shape, latent_dim, **args),
        "d": ConvNet(shape, 1, **args | {"width": net_args["critic_width"]}),
    }


def make_mlp(*, net_args: dict, shape: Shape, latent_dim: int) -> dict[str, nn.Module]:
    """Returns E before its BatchNorm, G and d for examples of a shape (NHWC)."""
    return {
        "E": MLP(shape, (latent_dim,), **net_args),
        "G": MLP((latent_dim,), shape, **net_args),
        "d": MLP(shape, (1,), **net_args),
    }
