"""Copies arrays between Flax nets and their PyTorch twins."""

from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import numpy as np
import torch
from flax.traverse_util import unflatten_dict
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pmjax.benchmarks.peers.torch_nets import Order, SpectralConv, SpectralLinear
from pmjax.errors import UserError

Tree = dict[str, Any]


def set_up(*, cores: int, gpu: bool) -> tuple[str, str]:
    """Sets PyTorch up for a measurement; returns the type and the name of its device.

    Raises:
      UserError: if JAX has a GPU that PyTorch does not find.
    """
    if gpu and not torch.cuda.is_available():
        raise UserError(
            "JAX runs on a GPU that PyTorch does not find: install PyTorch for CUDA, or compare on "
            "the CPU with JAX_PLATFORMS=cpu."
        )
    torch.set_num_threads(cores)
    torch.set_flush_denormal(True)  # as XLA does
    return ("cuda", torch.cuda.get_device_name()) if gpu else ("cpu", "cpu")


def load(net: nn.Module, params: Tree, stats: Tree) -> None:
    """Copies the parameters and statistics of the Flax twin into a net, with their dtype."""
    for path, layer in _layers(net):
        for name, array in _at(params, path).items():
            if name == "kernel":
                ours = array[..., _order(layer, "inputs"), :][..., _order(layer, "outputs")]
                _assign(layer.weight, ours.transpose(3, 2, 0, 1) if ours.ndim == 4 else ours.T)
            elif name == "scale":
                _assign(layer.weight, array)
            else:
                _assign(layer.bias, array[_order(layer, "outputs")])
        if isinstance(layer, _BatchNorm):
            running = _at(stats["batch_stats"], path)
            _assign(layer.running_mean, running["mean"])
            _assign(layer.running_var, running["var"])
        if isinstance(layer, SpectralLinear | SpectralConv):
            _assign(layer.u, _at(stats["spectral"], _spectral(path))[0])


def parameters(net: nn.Module) -> Tree:
    """Returns a net's parameters in the layout of its Flax twin."""
    return _export(net, lambda parameter: parameter.detach())


def gradients(net: nn.Module) -> Tree:
    """Returns the gradients of a net's parameters in the layout of its Flax twin."""
    return _export(net, lambda parameter: parameter.grad)


def statistics(net: nn.Module) -> Tree:
    """Returns a net's statistics in the layout of its Flax twin, without `sigma`."""
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for path, layer in _layers(net):
        if isinstance(layer, _BatchNorm):
            flat["batch_stats", *path, "mean"] = _numpy(layer.running_mean)
            flat["batch_stats", *path, "var"] = _numpy(layer.running_var)
        if isinstance(layer, SpectralLinear | SpectralConv):
            flat["spectral", *_spectral(path)] = _numpy(layer.u)[None]
    return unflatten_dict(flat)


def _export(net: nn.Module, value: Callable[[torch.Tensor], torch.Tensor | None]) -> Tree:
    flat: dict[tuple[str, ...], np.ndarray] = {}
    for path, layer in _layers(net):
        if layer.weight is None:
            continue
        weight, bias = _numpy(value(layer.weight)), _numpy(value(layer.bias))
        outputs = _inverse(layer, "outputs")
        flat[*path, "bias"] = bias[outputs]
        if isinstance(layer, _BatchNorm):
            flat[*path, "scale"] = weight
        else:
            kernel = weight.transpose(2, 3, 1, 0) if weight.ndim == 4 else weight.T
            flat[*path, "kernel"] = kernel[..., _inverse(layer, "inputs"), :][..., outputs]
    return unflatten_dict(flat)


def _layers(net: nn.Module) -> Iterator[tuple[tuple[str, ...], Any]]:
    for path, layer in net.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear | _BatchNorm):
            yield tuple(path.split(".")), layer


def _spectral(path: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the path of u in Flax's collection."""
    *parents, layer = path
    return *parents, "SpectralNorm_" + layer.rpartition("_")[2], f"{layer}/kernel/u"


def _order(layer: nn.Module, side: str) -> Order:
    return getattr(layer, side, slice(None))


def _inverse(layer: nn.Module, side: str) -> Order:
    order = _order(layer, side)
    return order if isinstance(order, slice) else np.argsort(order)


def _at(tree: Tree, path: tuple[str, ...]) -> Any:
    return reduce(lambda node, name: node.get(name, {}), path, tree)


def _assign(tensor: Any, array: np.ndarray) -> None:
    if tuple(tensor.shape) != array.shape:
        raise ValueError(f"shapes differ: {tuple(tensor.shape)} and {array.shape}")
    tensor.data = torch.from_numpy(np.array(array, order="C")).to(tensor.device)


def _numpy(tensor: torch.Tensor | None) -> np.ndarray:
    assert tensor is not None, "no gradient"
    return tensor.detach().cpu().numpy().copy()
