"""The loss: a sum of cross-entropies over the target tokens, never a mean, without the logits of all tokens in memory.

The matrix products are computed for a chunk of rows at a time. Between the products the logits of the chunk are
replaced in place by their gradients, one block of rows that fits the caches after the other. The gradients are complete
when the forward ends, so only they are saved, and nothing is computed twice (as in Liger, arXiv 2410.10989).

Legend: N rows (tokens), D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""The label of a token that is not a target."""


@dataclass(frozen=True)
class VocabularyPart:
    """The rows [first, first + size) of a vocabulary of `total` that a head holds, and how to combine it with the
    others.

    Attributes:
        enter: applied to the hidden states; their gradient becomes the sum over all parts.
        add, maximum: sum and elementwise maximum of a tensor over all parts.
        join: concatenates the logits (..., size) of all parts to (..., total).
    """

    first: int
    size: int
    total: int
    enter: Callable[[Tensor], Tensor]
    add: Callable[[Tensor], Tensor]
    maximum: Callable[[Tensor], Tensor]
    join: Callable[[Tensor], Tensor]


@torch.compiler.disable  # A graph would unroll the chunks, and their memory would no longer be limited.
def linear_cross_entropy(
    hidden_ND: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    *,
    softcap: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
    part: VocabularyPart | None = None,
) -> Tensor:
    """Sum over the rows with a label other than -100 of -log softmax(hidden weight^T + bias)[label], a fp32 scalar.

    The products have the dtype of their factors, the softmax is fp32. Without any target the loss and its gradients are
    0. The backward can run only once: it scales the gradients of the forward in place and returns them.

    Args:
        softcap: logits become softcap * tanh(logits / softcap) (Gemma 2, arXiv 2408.00118).
        z_loss: factor of the squared log of the denominator of the softmax, added per target (PaLM, arXiv 2204.02311).
        label_smoothing: share of the target that is spread evenly over the vocabulary (arXiv 1512.00567), as in
            `torch.nn.functional.cross_entropy`.
        part: the rows of the vocabulary that `weight_VD` and `bias_V` hold. None: all. The result is the whole loss,
            the same for all parts. The gradient of the hidden states is that of this part; `part.enter` sums them.
    """
    options = (softcap, z_loss, label_smoothing, part)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, options, torch.is_grad_enabled())


@torch.compiler.disable  # The number of rows depends on the data.
def keep_targets(hidden_ND: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """The rows with a label other than -100, and their labels: about one row in seven in masked language modelling."""
    targets = (labels_N != IGNORED).nonzero()[:, 0]
    if len(targets) == len(labels_N):
        return hidden_ND, labels_N
    return hidden_ND.index_select(0, targets), labels_N[targets]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, options, grad_enabled):
        ctx.types = [None if x is None else x.dtype for x in (hidden_ND, weight_VD, bias_V)]
        num_rows, vocabulary = len(hidden_ND), len(weight_VD)
        # Under no_grad `needs_input_grad` still tells which inputs would need a gradient.
        hidden_needs, weight_needs, bias_needs = (grad_enabled and needs for needs in ctx.needs_input_grad[:3])
        with_gradient = hidden_needs or weight_needs or bias_needs
        hidden_gradient_ND = torch.empty_like(hidden_ND) if hidden_needs else None
        bias_gradient_V = bias_V.new_zeros(vocabulary, dtype=torch.float32) if bias_needs else None
        bias_V = None if bias_V is None else bias_V.float()

        chunk_rows, block_rows = rows_at_a_time(num_rows, vocabulary, hidden_ND.element_size(), hidden_ND.device.type)
        if options[-1] is not None:  # the parts communicate once for each block, so blocks are as large as possible
            block_rows = chunk_rows
        buffer_NV = hidden_ND.new_empty(chunk_rows, vocabulary)
        # Sums over several chunks are computed in fp32.
        weight_gradient_VD = None
        if weight_needs:
            sum_type = weight_VD.dtype if chunk_rows >= num_rows else torch.float32
            weight_gradient_VD = torch.empty_like(weight_VD, dtype=sum_type)
        losses_N = hidden_ND.new_empty(num_rows, dtype=torch.float32)
        for start in range(0, num_rows, chunk_rows):
            chunk_ND = hidden_ND[start : start + chunk_rows]
            chunk_NV = torch.mm(chunk_ND, weight_VD.T, out=buffer_NV[: len(chunk_ND)])
            for row in range(0, len(chunk_ND), block_rows):
                block_NV = chunk_NV[row : row + block_rows]
                rows = slice(start + row, start + row + len(block_NV))
                losses_N[rows] = _cross_entropy(
                    block_NV, bias_V, labels_N[rows], with_gradient, bias_gradient_V, *options
                )
            if hidden_gradient_ND is not None:
                torch.mm(chunk_NV, weight_VD, out=hidden_gradient_ND[start : start + chunk_rows])
            if weight_gradient_VD is not None:
                _add_product(weight_gradient_VD, chunk_NV.T, chunk_ND, first=start == 0)

        if weight_gradient_VD is not None and num_rows == 0:
            weight_gradient_VD.zero_()
        ctx.save_for_backward(hidden_gradient_ND, weight_gradient_VD, bias_gradient_V)
        return losses_N.sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, scale):
        # In place: autograd then uses these tensors as the gradients of the parameters, without a copy.
        gradients = zip(ctx.saved_tensors, ctx.types, strict=True)
        return *(None if x is None else x.mul_(scale).to(dtype) for x, dtype in gradients), None, None, None


def rows_at_a_time(num_rows: int, vocabulary: int, element_size: int, device: str) -> tuple[int, int]:
    """Number of rows of a chunk, which shares a matrix product, and of a block of it, which shares a softmax.

    Longer chunks make the products faster, because each product reads the whole weight and adds to its gradient; on a
    CPU chunks of more than 1,024 rows are not faster. The logits of a chunk, in the dtype of the factors, take at most
    100 MiB on a CPU and 512 MiB on other devices. A block is computed in fp32; on a CPU it takes 4 MiB, which stay in
    the caches. The lengths of two chunks differ by at most one row.
    """
    on_cpu = device == "cpu"
    most = max(1, (100 if on_cpu else 512) * 2**20 // (vocabulary * element_size))
    num_chunks = max(1, math.ceil(num_rows / (min(most, 1024) if on_cpu else most)))
    chunk_rows = max(1, math.ceil(num_rows / num_chunks))
    return chunk_rows, max(1, 2**22 // (vocabulary * 4)) if on_cpu else chunk_rows


def _cross_entropy(
    product_NV: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    with_gradient: bool,
    bias_gradient_V: Tensor | None,
    softcap: float | None,
    z_loss: float,
    label_smoothing: float,
    part: VocabularyPart | None,
) -> Tensor:
    """Losses (N,) of a product of hidden states and weight. With `with_gradient` their gradient overwrites the product,
    and its sum over the rows is added to the gradient of the bias."""
    logits_NV = product_NV.float()  # fp32 factors: the product itself
    if bias_V is not None:
        logits_NV += bias_V
    if softcap is not None:
        logits_NV.div_(softcap).tanh_().mul_(softcap)
    is_target_N1 = (labels_N != IGNORED)[:, None]
    if part is None:
        vocabulary, statistics = logits_NV.shape[1], _softmax(logits_NV, labels_N[:, None], is_target_N1)
    else:
        vocabulary, statistics = part.total, _softmax_of_part(logits_NV, labels_N[:, None], is_target_N1, part)
    softmax_NV, largest_N1, log_sum_N1, target_N1, total_N1, index_N1, is_here_N1 = statistics

    loss_N1 = largest_N1 - target_N1
    if label_smoothing:
        total_N1 = logits_NV.sum(1, keepdim=True) if total_N1 is None else total_N1
        loss_N1 = loss_N1.lerp(largest_N1 - total_N1 / vocabulary, label_smoothing)
    log_denominator_N1 = largest_N1 + log_sum_N1
    loss_N1 = loss_N1 + log_sum_N1 + z_loss * log_denominator_N1.square()

    if with_gradient:
        gradient_NV = softmax_NV
        gradient_NV *= is_target_N1 * (1 + 2 * z_loss * log_denominator_N1)
        if label_smoothing:
            gradient_NV -= is_target_N1 * (label_smoothing / vocabulary)
        gradient_NV.scatter_add_(1, index_N1, is_here_N1 * (label_smoothing - 1.0))
        if softcap is not None:
            gradient_NV *= 1 - (logits_NV / softcap).square()
        product_NV.copy_(gradient_NV)
        if bias_gradient_V is not None:
            bias_gradient_V += gradient_NV.sum(0)
    return (loss_N1 * is_target_N1)[:, 0]


_Statistics = tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor, Tensor]


def _softmax(logits_NV: Tensor, labels_N1: Tensor, is_target_N1: Tensor) -> _Statistics:
    """softmax, largest logit, log of the sum of exp(logits - largest), logit of the target, sum of the logits (None if
    it was not computed), index of the target, and whether the target is in these logits."""
    index_N1 = labels_N1.where(is_target_N1, 0)
    largest_N1 = logits_NV.amax(1, keepdim=True)
    softmax_NV = logits_NV.softmax(1)
    log_sum_N1 = -softmax_NV.amax(1, keepdim=True).log()  # the largest entry is 1 / (sum of exp(logits - largest))
    return softmax_NV, largest_N1, log_sum_N1, logits_NV.gather(1, index_N1), None, index_N1, is_target_N1


def _softmax_of_part(logits_NV: Tensor, labels_N1: Tensor, is_target_N1: Tensor, part: VocabularyPart) -> _Statistics:
    """The same over all parts of a vocabulary; the logits are those of one part."""
    index_N1 = labels_N1 - part.first
    is_here_N1 = is_target_N1 & (index_N1 >= 0) & (index_N1 < part.size)
    index_N1 = index_N1.where(is_here_N1, 0)
    largest_N1 = part.maximum(logits_NV.amax(1, keepdim=True))
    softmax_NV = (logits_NV - largest_N1).exp_()
    mine_N3 = [softmax_NV.sum(1), (logits_NV.gather(1, index_N1) * is_here_N1)[:, 0], logits_NV.sum(1)]
    sum_N1, target_N1, total_N1 = part.add(torch.stack(mine_N3, 1)).split(1, dim=1)
    return softmax_NV.div_(sum_N1), largest_N1, sum_N1.log(), target_N1, total_N1, index_N1, is_here_N1


def _add_product(total_VD: Tensor, left_VN: Tensor, right_ND: Tensor, first: bool) -> None:
    """Adds left @ right to the total, or sets it, 4096 rows at a time: if the dtypes differ, a product needs its own
    memory, and a small one is added from the caches."""
    for rows_VD, left_rows_VN in zip(total_VD.split(4096), left_VN.split(4096), strict=True):
        if rows_VD.dtype == right_ND.dtype:
            rows_VD.addmm_(left_rows_VN, right_ND, beta=0 if first else 1)
        elif first:
            rows_VD.copy_(left_rows_VN @ right_ND)
        else:
            rows_VD.add_(left_rows_VN @ right_ND)
