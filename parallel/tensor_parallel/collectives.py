"""Sums and exchanges over the tensor ranks, each with its gradient.

Between the parts of a layer that are shared by heads or features, activations (B, T, D) lie cut along the sequence:
tensor rank r of n holds tokens [r * T / n, (r + 1) * T / n) (sequence parallelism, Korthikanti et al. 2022, arXiv
2205.05198).

| function     | forward                              | backward                            |
|--------------|--------------------------------------|-------------------------------------|
| gather       | whole sequences from all ranks       | sum, each rank its part             |
| scatter_sum  | sum over ranks, each rank its part   | whole sequences from all ranks      |
| split        | own part of what all hold            | whole sequences from all ranks      |
| gather_same  | whole sequences from all ranks       | own part of what all hold           |
| copy         | nothing                              | sum over ranks, in fp32             |
| total        | sum over ranks                       | nothing                             |
"""

import torch
import torch.distributed as dist
from torch import Tensor

_ops = torch.ops._c10d_functional  # collectives as operators, which torch.compile sees


def all_gather(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The parts (B, T / n, ...) of all ranks, in their order, as (B, T, ...)."""
    n, (batch, length) = group.size(), x_BTD.shape[:2]
    parts = _ops.wait_tensor(_ops.all_gather_into_tensor(x_BTD.contiguous(), n, group.group_name))
    return parts.view(n, batch, length, *x_BTD.shape[2:]).transpose(0, 1).reshape(batch, n * length, *x_BTD.shape[2:])


def reduce_scatter(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part (B, T / n, ...) of the sum over ranks."""
    n, (batch, length) = group.size(), x_BTD.shape[:2]
    parts = x_BTD.view(batch, n, length // n, *x_BTD.shape[2:]).transpose(0, 1).reshape(n * batch, length // n, -1)
    part = _ops.wait_tensor(_ops.reduce_scatter_tensor(parts.contiguous(), "sum", n, group.group_name))
    return part.view(batch, length // n, *x_BTD.shape[2:])


def all_reduce(x: Tensor, group: dist.ProcessGroup, operation: str = "sum") -> Tensor:
    return _ops.wait_tensor(_ops.all_reduce(x.contiguous(), operation, group.group_name))


def _sum_in_fp32(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rounded once, after the sum: on the way parts cancel, of the head's gradient above all."""
    return all_reduce(x.float(), group).to(x.dtype)


def own_part(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x_BTD.tensor_split(group.size(), dim=1)[group.rank()].contiguous()


def _identity(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return x.view_as(x)


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, forward, backward, group):
        ctx.backward_function, ctx.group = backward, group
        return forward(x, group)

    @staticmethod
    def backward(ctx, grad):
        return ctx.backward_function(grad.contiguous(), ctx.group), None, None, None


def gather(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, all_gather, reduce_scatter, group)


def scatter_sum(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, reduce_scatter, all_gather, group)


def split(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, own_part, all_gather, group)


def gather_same(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, all_gather, own_part, group)


def copy(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x, _identity, _sum_in_fp32, group)


def total(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x, all_reduce, _identity, group)
