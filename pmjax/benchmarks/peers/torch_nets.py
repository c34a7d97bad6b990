"""The nets of `pmjax.nets` as PyTorch modules.

Images are NCHW. Submodules have the names of their Flax counterparts, so that arrays match by path.
Where a layer reads or writes flattened pixels, its `inputs` or `outputs` map its positions to
Flax's: the weights are reordered once, instead of the activations at each call.
"""

from collections import OrderedDict
from collections.abc import Iterable
from itertools import pairwise
from math import prod
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Shape = tuple[int, ...]
Order = np.ndarray | slice
Nets = dict[str, nn.Module]


def channels_first(height: int, width: int, channels: int) -> np.ndarray:
    """Returns the positions in flattened [H, W, C] of the entries of flattened [C, H, W]."""
    positions = np.arange(height * width * channels).reshape(height, width, channels)
    return positions.transpose(2, 0, 1).ravel()


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
        relu_shortcut: bool = False, spectral: bool = False,
    ):  # fmt: skip
        super().__init__()
        hidden = features if optimized else channels
        self.Conv_0 = conv(channels, hidden, spectral=spectral)
        self.Conv_1 = conv(hidden, features, spectral=spectral)
        changes = down or channels != features
        self.Conv_2 = conv(channels, features, 1, spectral=spectral) if changes else None
        self.down, self.optimized, self.relu_shortcut = down, optimized, relu_shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, features, H, W], or to half of H and W."""
        h = x if self.optimized else F.relu(x)
        x = h if self.relu_shortcut else x
        h = self.Conv_1(F.relu(self.Conv_0(h)))
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


def chain(**layers: nn.Module) -> nn.Sequential:
    """Returns layers, applied one after another, under their names."""
    return nn.Sequential(OrderedDict(layers))


def numbered(name: str, layers: Iterable[nn.Module]) -> Nets:
    """Returns layers under the names NAME_0, NAME_1 and so on."""
    return {f"{name}_{index}": layer for index, layer in enumerate(layers)}


def make_resnet(*, net_args: dict, shape: Shape, latent_dim: int) -> Nets:
    """Returns E before its BatchNorm, G and d of `pmjax.nets.resnet` for images of a shape."""
    height, wide, channels = shape
    width, blocks, patch = (net_args[name] for name in ("width", "blocks", "patch"))
    low, pixels = (height // (2 * patch), wide // (2 * patch)), (patch, patch, channels)

    def reducer(features: int, width: int) -> nn.Sequential:
        size = (*low, 2 * width)
        rest = [DBlock(2 * width, 2 * width) for _ in range(blocks)]
        trunk = chain(
            unshuffle=nn.PixelUnshuffle(patch),
            Conv_0=reordered(conv(prod(pixels), width), inputs=channels_first(*pixels)),
            **numbered("DBlock", [DBlock(width, 2 * width, down=True), *rest]),
            relu=nn.ReLU(),
        )
        last = reordered(nn.Linear(prod(size), features), inputs=channels_first(*size))
        return chain(_Trunk_0=trunk, flatten=nn.Flatten(), Dense_0=last)

    size = (*low, 2 * width)
    rest = [GBlock(2 * width, 2 * width) for _ in range(blocks)]
    decoder = chain(
        Dense_0=reordered(nn.Linear(latent_dim, prod(size)), outputs=channels_first(*size)),
        unflatten=nn.Unflatten(1, (2 * width, *low)),
        **numbered("GBlock", [*rest, GBlock(2 * width, width, up=True)]),
        relu=nn.ReLU(),
        Conv_0=reordered(conv(width, prod(pixels)), outputs=channels_first(*pixels)),
        shuffle=nn.PixelShuffle(patch),
        tanh=nn.Tanh(),
    )
    return {
        "E": reducer(latent_dim, width),
        "G": decoder,
        "d": reducer(1, net_args["critic_width"]),
    }


def make_mlp(*, net_args: dict, shape: Shape, latent_dim: int) -> Nets:
    """Returns E before its BatchNorm, G and d of `pmjax.nets.mlp` for images or points."""
    return {
        "E": _mlp(shape, (latent_dim,), **net_args),
        "G": _mlp((latent_dim,), shape, **net_args),
        "d": _mlp(shape, (1,), **net_args),
    }


def _mlp(shape: Shape, features: Shape, *, width: int, layers: int) -> nn.Sequential:
    sizes = [prod(shape), *[width] * layers, prod(features)]
    orders = [_flat_order(shape), *[slice(None)] * layers, _flat_order(features)]
    dense: Nets = {}
    for index in range(layers + 1):
        layer = nn.Linear(sizes[index], sizes[index + 1])
        reordered(layer, inputs=orders[index], outputs=orders[index + 1])
        dense |= {f"Dense_{index}": layer, f"relu_{index}": nn.ReLU()}
    dense.popitem()  # the last layer is linear
    perceptron = chain(flatten=nn.Flatten(), MLP_0=chain(**dense))
    if len(features) == 3:
        height, wide, channels = features
        perceptron.append(nn.Unflatten(1, (channels, height, wide))).append(nn.Tanh())
    return perceptron


def _flat_order(shape: Shape) -> Order:
    return channels_first(*shape) if len(shape) == 3 else slice(None)


def embedding(net: nn.Module, norm: dict | None, latent_dim: int) -> nn.Sequential:
    """Returns E with its BatchNorm, equation (11), or without one."""
    if norm is None:
        return chain(trunk=net)
    layer = VectorNorm(latent_dim, momentum=1 - norm["momentum"], affine=norm["affine"])
    return chain(trunk=net, norm=chain(BatchNorm_0=layer))


class LatentNet(nn.Module):
    """Dense, residual blocks, relu, dense."""

    def __init__(self, layers: Nets):
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, z: Tensor) -> Tensor:
        """Applies the layers in their order."""
        enter, *inner, leave = self.children()
        x = enter(z)
        for one, two in zip(inner[::2], inner[1::2], strict=True):
            x = x + two(F.relu(one(F.relu(x))))
        return leave(F.relu(x))


def make_latent_gan(
    *, base_dim: int, latent_dim: int, width: int, blocks: int, spectral_norm: bool
) -> Nets:
    """Returns g, from z' [N, p] to embeddings [N, d], and D, from these to [N, 1]."""
    layer: type[nn.Linear] = SpectralLinear if spectral_norm else nn.Linear
    sizes = pairwise([latent_dim, *[width] * (2 * blocks + 1), 1])
    g = {
        "enter": nn.Linear(base_dim, width),
        **numbered("Dense", [nn.Linear(width, width) for _ in range(2 * blocks)]),
        "leave": nn.Linear(width, latent_dim),
    }
    D = numbered("Dense", [layer(inputs, outputs) for inputs, outputs in sizes])
    return {"g": LatentNet(g), "D": LatentNet(D)}
