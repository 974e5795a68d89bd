"""Collectives over the tensor ranks, each with its gradient.

Between the parts of a layer that are split by heads or features, activations (B, T, D) are split by tokens (sequence
parallelism, Korthikanti et al. 2022, arXiv 2205.05198). Tensor rank r of n holds one n-th of the flattened B * T
tokens, from r * B * T / n on, with the shape (B, T / n, D): what is computed there is the same for every token. So the
parts of all ranks, one behind the other, are the whole, and no exchange copies anything into another order. (With T / n
tokens of each sequence on a rank it would, if B is more than 1.)

| function                   | forward                                | backward                               |
|----------------------------|----------------------------------------|----------------------------------------|
| gather_sequence            | gathers all tokens                     | sums, and leaves each rank its part    |
| gather_for_head            | gathers all tokens                     | the same, summed in fp32               |
| reduce_scatter_sequence    | sums, and leaves each rank its part    | gathers all tokens                     |
| split_sequence             | leaves each rank its part              | gathers all tokens                     |
| gather_replicated_sequence | gathers all tokens                     | leaves each rank its part              |
| copy_to_ranks              | nothing                                | sums in fp32                           |
| reduce_from_ranks          | sums                                   | nothing                                |

The inputs of split_sequence and copy_to_ranks, and the results of gather_replicated_sequence and reduce_from_ranks, are
the same on all ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from ingot.parallel.torch_compat import functional_collectives as _ops


def all_gather(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The parts (B, T / n, ...) of all ranks, in the order of ranks, as (B, T, ...)."""
    n, (batch, length) = group.size(), x_BTD.shape[:2]
    # Rows, as a matrix product takes them: a compiler then sees the gathered rows as its factor.
    rows = x_BTD.contiguous().view(batch * length, *x_BTD.shape[2:])
    whole = _ops.wait_tensor(_ops.all_gather_into_tensor(rows, n, group.group_name))
    return whole.view(batch, n * length, *x_BTD.shape[2:])


def reduce_scatter(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part (B, T / n, ...) of the sum of (B, T, ...) over ranks."""
    n, (batch, length) = group.size(), x_BTD.shape[:2]
    rows = x_BTD.contiguous().view(batch * length, *x_BTD.shape[2:])
    part = _ops.wait_tensor(_ops.reduce_scatter_tensor(rows, "sum", n, group.group_name))
    return part.view(batch, length // n, *x_BTD.shape[2:])


def all_reduce(x: Tensor, group: dist.ProcessGroup, operation: str = "sum") -> Tensor:
    """The sum over ranks, or another reduction (`max`, `min`, ...)."""
    return _ops.wait_tensor(_ops.all_reduce(x.contiguous(), operation, group.group_name))


def _sum_in_fp32(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Rounds once, after the sum: large parts may cancel, most of all in the gradient of the head."""
    return all_reduce(x.float(), group).to(x.dtype)


def _reduce_scatter_in_fp32(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return reduce_scatter(x_BTD.float(), group).to(x_BTD.dtype)


def own_part(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    """This rank's part (B, T / n, ...) of (B, T, ...)."""
    batch, length = x_BTD.shape[:2]
    parts = x_BTD.contiguous().view(group.size(), batch, length // group.size(), *x_BTD.shape[2:])
    return parts[group.rank()].clone()


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


def gather_sequence(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, all_gather, reduce_scatter, group)


def gather_for_head(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, all_gather, _reduce_scatter_in_fp32, group)


def reduce_scatter_sequence(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, reduce_scatter, all_gather, group)


def split_sequence(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, own_part, all_gather, group)


def gather_replicated_sequence(x_BTD: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x_BTD, all_gather, own_part, group)


def copy_to_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x, _identity, _sum_in_fp32, group)


def reduce_from_ranks(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    return _Exchange.apply(x, all_reduce, _identity, group)
