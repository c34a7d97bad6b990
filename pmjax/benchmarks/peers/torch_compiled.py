"""The training step and the features in PyTorch, the nets compiled by torch.compile."""

import torch._functorch.config

from pmjax.benchmarks.peers import torch as eager

# Stage 1 takes two gradients of one pass; compiled nets would free what the second one needs.
torch._functorch.config.donated_buffer = False


class Side(eager.Side):
    """As the eager one."""

    compiled = True


class Features(eager.Features):
    """As the eager one."""

    compiled = True
