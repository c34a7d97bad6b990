"""The training step and the features in PyTorch, with nets compiled by torch.compile."""

import torch._functorch.config

from pmjax.benchmarks.peers import torch as eager

# Stage 1 takes two gradients of one pass; compiled nets would free the buffers of the second.
torch._functorch.config.donated_buffer = False


class TrainingStep(eager.TrainingStep):
    """As the eager one."""

    compiled = True


class Features(eager.Features):
    """As the eager one."""

    compiled = True
