"""The nets of `pmjax.nets.mimicry` as PyTorch modules; see `torch_nets`."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmjax.benchmarks.peers.torch_nets import (
    DBlock,
    GBlock,
    ImageNorm,
    Shape,
    SpectralLinear,
    channels_first,
    conv,
    reordered,
)
from pmjax.nets.mimicry import critic_blocks, generator_channels


class Trunk(nn.Module):
    """The blocks of D32 and D64."""

    def __init__(self, shape: Shape, scale: float, *, spectral: bool):
        super().__init__()
        height, width, channels = shape
        blocks = critic_blocks(height, width, scale)
        self.depth = len(blocks)
        for index, (features, down) in enumerate(blocks):
            block = DBlock(channels, features, down, optimized=index == 0, spectral=spectral)
            self.add_module(f"DBlock_{index}", block)
            channels, height, width = features, height // (1 + down), width // (1 + down)
        self.shape = (height, width, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images to features [N, C, H, W]."""
        for index in range(self.depth):
            x = getattr(self, f"DBlock_{index}")(x)
        return F.relu(x)


class Encoder(nn.Module):
    """E before its BatchNorm."""

    def __init__(self, shape: Shape, latent_dim: int, scale: float):
        super().__init__()
        self._Trunk_0 = Trunk(shape, scale, spectral=False)
        height, width, channels = self._Trunk_0.shape
        layer = nn.Linear(height * width * channels, latent_dim)
        self.Dense_0 = reordered(layer, inputs=channels_first(height, width, channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, latent_dim]."""
        return self.Dense_0(self._Trunk_0(x).flatten(1))


class Decoder(nn.Module):
    """G32 and G64."""

    per_example = False  # with BatchNorm, an image depends on the rest of the batch

    def __init__(self, shape: Shape, latent_dim: int, scale: float):
        super().__init__()
        height, width, channels = shape
        sizes = generator_channels(height, width, scale)
        self.depth, self.first = len(sizes) - 1, sizes[0]
        layer = nn.Linear(latent_dim, 16 * sizes[0])
        self.Dense_0 = reordered(layer, outputs=channels_first(4, 4, sizes[0]))
        for index in range(self.depth):
            block = GBlock(sizes[index], sizes[index + 1], up=True, batch_norm=True)
            self.add_module(f"GBlock_{index}", block)
        self.BatchNorm_0 = ImageNorm(sizes[-1])
        self.Conv_0 = conv(sizes[-1], channels)

    def forward(self, z: Tensor) -> Tensor:
        """Maps [N, latent_dim] to [N, C, H, W]."""
        x = self.Dense_0(z).unflatten(1, (self.first, 4, 4))
        for index in range(self.depth):
            x = getattr(self, f"GBlock_{index}")(x)
        return torch.tanh(self.Conv_0(F.relu(self.BatchNorm_0(x))))


class Critic(nn.Module):
    """D32 and D64."""

    def __init__(self, shape: Shape, scale: float):
        super().__init__()
        self._Trunk_0 = Trunk(shape, scale, spectral=True)
        self.Dense_0 = SpectralLinear(self._Trunk_0.shape[2], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, 1]."""
        return self.Dense_0(self._Trunk_0(x).sum((2, 3)))


def make(*, net_args: dict, shape: Shape, latent_dim: int) -> dict[str, nn.Module]:
    """Returns E before its BatchNorm, G and d for examples of a shape (NHWC)."""
    return {
        "E": Encoder(shape, latent_dim, **net_args),
        "G": Decoder(shape, latent_dim, **net_args),
        "d": Critic(shape, **net_args),
    }
