"""Gradients of which each tensor rank has a part: those of norms and of biases behind a sum.

Each rank computes them for its own tokens. The parts of a whole step are added up on each rank first, and then summed
over the ranks in one flat fp32 buffer: one collective a step instead of one for each parameter and micro-batch.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from ingot.parallel.torch_compat import copy_all


@torch.no_grad()
def sum_partial_gradients(module: nn.Module, partial: Mapping[str, dist.ProcessGroup]) -> None:
    """Makes partial gradients whole. Each rank must call it once, after the last micro-batch of a step.

    With sharded parameters the same shards of all tensor ranks are summed.

    Args:
        partial: as in `LocalParameters`.
    """
    if not partial:
        return
    gradients: dict[dist.ProcessGroup, list[Tensor]] = {}
    for name, parameter in module.named_parameters():
        if name in partial and parameter.grad is not None:
            gradient = parameter.grad
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            gradients.setdefault(partial[name], []).append(local)
    for group, parts in gradients.items():
        flat = torch.cat([part.flatten().float() for part in parts])
        dist.all_reduce(flat, group=group)
        sums = flat.split([part.numel() for part in parts])
        copy_all(parts, [whole.view_as(part) for whole, part in zip(sums, parts, strict=True)])
