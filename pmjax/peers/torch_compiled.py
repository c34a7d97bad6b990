"""The training step in PyTorch, its nets compiled by torch.compile."""

from pmjax.peers import torch


class Side(torch.Side):
    """As the eager one."""

    compiled = True
