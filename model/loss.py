"""The loss: a sum of cross-entropies over the target tokens, never a mean, without the logits of all tokens in memory.

The matrix products are computed for a chunk of rows at a time. Between the products the logits of the chunk are
replaced in place by their gradients, one block of rows that fits the caches after the other. The gradients are complete
when the forward ends, so only they are saved, and nothing is computed twice (as in Liger, arXiv 2410.10989).

Legend: N rows (tokens), D hidden size, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any

import torch
from torch import Tensor

from ingot.model.cross_entropy import IGNORED, LossOptions, VocabularyPart, cross_entropy
from ingot.model.fused_cross_entropy import fused_cross_entropy, fuses


def outside_of_graphs(function: Callable) -> Callable:
    """Lets torch.compile leave a function out of its graphs, as `torch.compiler.disable`.

    That one loads the compiler at once, which takes three seconds of the start of each command.
    """

    @cache
    def disabled() -> Callable:
        return torch.compiler.disable(function)

    @wraps(function)
    def run(*arguments: Any, **options: Any) -> Any:
        return (disabled() if "torch._dynamo" in sys.modules else function)(*arguments, **options)

    return run


@outside_of_graphs  # A graph would unroll the chunks, and their memory would no longer be limited.
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
    options = LossOptions(softcap, z_loss, label_smoothing)
    return _LinearCrossEntropy.apply(hidden_ND, weight_VD, bias_V, labels_N, options, part, torch.is_grad_enabled())


@outside_of_graphs  # The number of rows depends on the data.
def keep_targets(hidden_ND: Tensor, labels_N: Tensor, target_rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The rows with a label other than -100, and their labels: about one row in seven in masked language modelling.

    Args:
        target_rows: int64, the numbers of these rows, in order. None: they are searched in the labels; the host then
            waits for the device.
    """
    if target_rows is None:
        target_rows = (labels_N != IGNORED).nonzero()[:, 0]
    if len(target_rows) == len(labels_N):
        return hidden_ND, labels_N
    return hidden_ND.index_select(0, target_rows), labels_N.index_select(0, target_rows)


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_ND, weight_VD, bias_V, labels_N, options, part, grad_enabled):
        ctx.types = [None if x is None else x.dtype for x in (hidden_ND, weight_VD, bias_V)]
        num_rows, vocabulary = len(hidden_ND), len(weight_VD)
        # Under no_grad `needs_input_grad` still tells which inputs would need a gradient.
        hidden_needs, weight_needs, bias_needs = (grad_enabled and needs for needs in ctx.needs_input_grad[:3])
        with_gradient = hidden_needs or weight_needs or bias_needs
        hidden_gradient_ND = torch.empty_like(hidden_ND) if hidden_needs else None
        bias_gradient_V = bias_V.new_zeros(vocabulary, dtype=torch.float32) if bias_needs else None
        bias_V = None if bias_V is None else bias_V.float()

        fused = fuses(hidden_ND.device)
        element_size, device = hidden_ND.element_size(), hidden_ND.device.type
        chunk_rows, block_rows = rows_at_a_time(num_rows, vocabulary, element_size, device, fused)
        if part is not None:  # the parts communicate once for each block, so blocks are as large as possible
            block_rows = chunk_rows
        buffer_NP = hidden_ND.new_empty(chunk_rows, padded(vocabulary))
        # Sums over several chunks are computed in fp32.
        weight_gradient_VD = None
        if weight_needs:
            sum_type = weight_VD.dtype if chunk_rows >= num_rows else torch.float32
            weight_gradient_VD = torch.empty_like(weight_VD, dtype=sum_type)
        losses_N = hidden_ND.new_empty(num_rows, dtype=torch.float32)
        for start in range(0, num_rows, chunk_rows):
            chunk_ND = hidden_ND[start : start + chunk_rows]
            chunk_NP = buffer_NP[: len(chunk_ND)]
            chunk_NV = torch.mm(chunk_ND, weight_VD.T, out=chunk_NP[:, :vocabulary])
            if fused:
                rows = slice(start, start + len(chunk_ND))
                losses_N[rows] = fused_cross_entropy(
                    chunk_NP, bias_V, labels_N[rows], with_gradient, bias_gradient_V, options, part, vocabulary
                )
            for row in range(0, 0 if fused else len(chunk_ND), block_rows):
                block_NV = chunk_NV[row : row + block_rows]
                rows = slice(start + row, start + row + len(block_NV))
                losses_N[rows] = cross_entropy(
                    block_NV, bias_V, labels_N[rows], with_gradient, bias_gradient_V, options, part
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
        return *(None if x is None else x.mul_(scale).to(dtype) for x, dtype in gradients), None, None, None, None


def rows_at_a_time(
    num_rows: int, vocabulary: int, element_size: int, device: str, fused: bool = False
) -> tuple[int, int]:
    """Number of rows of a chunk, which shares a matrix product, and of a block of it, which shares a softmax.

    Longer chunks make the products faster, because each product reads the whole weight and adds to its gradient; on a
    CPU chunks of more than 1,024 rows are not faster. The logits of a chunk, in the dtype of the factors, take at most
    100 MiB on a CPU, and on other devices 512 MiB, or 1 GiB if the softmax is fused and needs no fp32 copies. A block
    is computed in fp32; on a CPU it takes 4 MiB, which stay in the caches. The lengths of two chunks differ by at most
    one row.
    """
    on_cpu = device == "cpu"
    limit = 100 if on_cpu else 1024 if fused else 512
    most = max(1, limit * 2**20 // (vocabulary * element_size))
    num_chunks = max(1, math.ceil(num_rows / (min(most, 1024) if on_cpu else most)))
    chunk_rows = max(1, math.ceil(num_rows / num_chunks))
    return chunk_rows, max(1, 2**22 // (vocabulary * 4)) if on_cpu else chunk_rows


def padded(vocabulary: int) -> int:
    """Length of a row of the logits in memory. Rows that start at a multiple of 64 elements are what the tensor cores
    of a GPU read without a detour: a row of GPT-2's 50,257 bf16 logits would start at an odd multiple of 2 bytes."""
    return -(-vocabulary // 64) * 64


def _add_product(total_VD: Tensor, left_VN: Tensor, right_ND: Tensor, first: bool) -> None:
    """Adds left @ right to the total, or sets it. Their dtypes may differ: then the sum is fp32."""
    way = "slabs" if total_VD.dtype == right_ND.dtype else _way_to_add(total_VD.dtype, right_ND.dtype, right_ND.device)
    if way == "addmm":
        torch.addmm(total_VD, left_VN, right_ND, total_VD.dtype, beta=0 if first else 1, out=total_VD)
        return
    if way == "mm":
        product_VD = torch.mm(left_VN, right_ND, total_VD.dtype)
        total_VD.copy_(product_VD) if first else total_VD.add_(product_VD)
        return
    for rows_VD, left_rows_VN in zip(total_VD.split(4096), left_VN.split(4096), strict=True):
        if rows_VD.dtype == right_ND.dtype:
            rows_VD.addmm_(left_rows_VN, right_ND, beta=0 if first else 1)
        elif first:
            rows_VD.copy_(left_rows_VN @ right_ND)
        else:
            rows_VD.add_(left_rows_VN @ right_ND)


@cache
def _way_to_add(total: torch.dtype, factor: torch.dtype, device: torch.device) -> str:
    """How a device adds a product of `factor`s to a sum of the dtype `total`.

    "addmm": inside the matrix product; "mm": after it, unrounded. Newer versions of torch have these on CUDA. "slabs":
    4096 rows at a time, as the product needs its own memory, and on a CPU a small one is added from the caches.
    """
    if device.type == "cpu":
        return "slabs"
    sums, ones = torch.zeros(8, 8, dtype=total, device=device), torch.ones(8, 8, dtype=factor, device=device)
    for way, try_it in (
        ("addmm", lambda: torch.addmm(sums, ones, ones, total, out=sums)),
        ("mm", lambda: torch.mm(ones, ones, total)),
    ):
        try:
            try_it()
        except (RuntimeError, TypeError):  # NotImplementedError is a RuntimeError
            continue
        return way
    return "slabs"
