"""The nets of `pmjax.nets.mimicry` as PyTorch modules; see `torch_nets`."""

from itertools import pairwise
from math import prod

from torch import Tensor, nn

from pmjax.benchmarks.peers.torch_nets import (
    DBlock,
    GBlock,
    ImageNorm,
    Nets,
    Shape,
    SpectralLinear,
    chain,
    channels_first,
    conv,
    numbered,
    reordered,
)
from pmjax.nets.mimicry import critic_blocks, generator_channels


class Sum(nn.Module):
    """Adds up the pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, H, W] to [N, C]."""
        return x.sum((2, 3))


def make(*, net_args: dict, shape: Shape, latent_dim: int) -> Nets:
    """Returns E before its BatchNorm, G and d (G32 or G64, D32 or D64) for images of a shape."""
    height, width, channels = shape
    halvings = critic_blocks(height, width, net_args["scale"])
    widths = [channels, *(features for features, _ in halvings)]
    factor = 2 ** sum(down for _, down in halvings)
    size = (height // factor, width // factor, widths[-1])

    def trunk(*, spectral: bool) -> nn.Sequential:
        blocks = [
            DBlock(widths[i], features, down, optimized=i == 0, spectral=spectral,
                   relu_shortcut=net_args["relu_shortcut"])
            for i, (features, down) in enumerate(halvings)
        ]  # fmt: skip
        return chain(**numbered("DBlock", blocks), relu=nn.ReLU())

    flat = reordered(nn.Linear(prod(size), latent_dim), inputs=channels_first(*size))
    up = generator_channels(height, width, net_args["scale"])
    first = reordered(nn.Linear(latent_dim, 16 * up[0]), outputs=channels_first(4, 4, up[0]))
    decoder = chain(
        Dense_0=first,
        unflatten=nn.Unflatten(1, (up[0], 4, 4)),
        **numbered("GBlock", [GBlock(m, n, up=True, batch_norm=True) for m, n in pairwise(up)]),
        BatchNorm_0=ImageNorm(up[-1]),
        relu=nn.ReLU(),
        Conv_0=conv(up[-1], channels),
        tanh=nn.Tanh(),
    )
    return {
        "E": chain(_Trunk_0=trunk(spectral=False), flatten=nn.Flatten(), Dense_0=flat),
        "G": decoder,
        "d": chain(_Trunk_0=trunk(spectral=True), sum=Sum(), Dense_0=SpectralLinear(widths[-1], 1)),
    }
