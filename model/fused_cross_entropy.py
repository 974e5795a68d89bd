"""`cross_entropy` for GPUs, written for torch.compile.

Operators that run one by one would read and write all logits in memory, about 38 bytes for each of them. The compiler
makes two passes of this: one for the largest logit and the sum of the exponentials (arXiv 1805.02867), one for the
gradient: 6 bytes for each bf16 logit. The results are equal but for rounding.

Legend: N rows (tokens), V vocabulary, or a part of it, P the same with padding.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from ingot.model.cross_entropy import IGNORED, LossOptions, VocabularyPart


def fuses(device: torch.device) -> bool:
    """Whether `fused_cross_entropy` is to be used on a device. A GPU without Triton is told of once."""
    return device.type == "cuda" and _has_triton()


@cache
def _has_triton() -> bool:
    from torch.utils._triton import has_triton

    if not has_triton():
        warnings.warn(
            "Triton is not installed, so the loss is computed operator by operator: it reads and writes about six "
            "times as much memory; install triton to make it faster",
            stacklevel=2,
        )
        return False
    return True


def fused_cross_entropy(
    product_NP: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    with_gradient: bool,
    bias_gradient_V: Tensor | None,
    options: LossOptions,
    part: VocabularyPart | None,
    vocabulary: int,
) -> Tensor:
    """As `cross_entropy`, compiled. The gradient of the bias is the sum of gradients in the dtype of the product.

    Args:
        product_NP: the product with V columns and padding behind them. Its rows are contiguous, and P is a multiple of
            8, so that a GPU reads and writes 16 bytes at a time. What is in the padding does not matter; with
            `with_gradient` it becomes 0.
        vocabulary: V.
    """
    if bias_V is not None:
        bias_V = nn.functional.pad(bias_V, (0, product_NP.shape[1] - vocabulary))
    if part is None:
        losses_N = _compiled(_losses)(product_NP, bias_V, labels_N, vocabulary, with_gradient, options)
    else:
        # The parts communicate between the passes: first for the largest logit, then for the sums.
        first = part.first
        sums = _compiled(_sums_of_part)(product_NP, bias_V, labels_N, first, vocabulary, options)
        largest_N1, sum_N1, target_N1, total_N1 = sums
        overall_N1 = part.maximum(largest_N1)
        sums_N3 = torch.cat((sum_N1 * (largest_N1 - overall_N1).exp(), target_N1, total_N1), 1)
        combined = (overall_N1, *part.add(sums_N3).split(1, dim=1))
        where = (first, vocabulary, part.total)
        losses_N = _compiled(_losses_from_sums)(product_NP, bias_V, labels_N, *where, *combined, with_gradient, options)
    if bias_gradient_V is not None and with_gradient:
        bias_gradient_V += product_NP[:, :vocabulary].sum(0, dtype=torch.float32)
    return losses_N


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Once a second number of rows was seen, the number is dynamic: two graphs serve all.
    return torch.compile(function)


def _logits(product_NP: Tensor, bias_P: Tensor | None, vocabulary: int, softcap: float | None) -> Tensor:
    """fp32 logits; -inf in the padding."""
    logits_NP = product_NP.float()
    if bias_P is not None:
        logits_NP = logits_NP + bias_P
    if softcap is not None:
        logits_NP = softcap * torch.tanh(logits_NP / softcap)
    if product_NP.shape[1] == vocabulary:
        return logits_NP
    return torch.where(torch.arange(product_NP.shape[1], device=product_NP.device) < vocabulary, logits_NP, -torch.inf)


def _sums(logits_NP: Tensor, index_N1: Tensor, vocabulary: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Largest logit, sum of exp(logits - largest), logit at an index, and sum of the logits, of each row."""
    largest_N1 = logits_NP.amax(1, keepdim=True)
    sum_N1 = (logits_NP - largest_N1).exp().sum(1, keepdim=True)
    ids_P = torch.arange(logits_NP.shape[1], device=logits_NP.device)
    total_N1 = torch.where(ids_P < vocabulary, logits_NP, 0.0).sum(1, keepdim=True)
    return largest_N1, sum_N1, logits_NP.gather(1, index_N1), total_N1


def _sums_of_part(
    product_NP: Tensor, bias_P: Tensor | None, labels_N: Tensor, first: int, size: int, options: LossOptions
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index_N1 = labels_N[:, None] - first
    is_here_N1 = (index_N1 >= 0) & (index_N1 < size)
    logits_NP = _logits(product_NP, bias_P, size, options.softcap)
    largest_N1, sum_N1, target_N1, total_N1 = _sums(logits_NP, index_N1.where(is_here_N1, 0), size)
    return largest_N1, sum_N1, target_N1 * is_here_N1, total_N1


def _losses(
    product_NP: Tensor,
    bias_P: Tensor | None,
    labels_N: Tensor,
    vocabulary: int,
    with_gradient: bool,
    options: LossOptions,
) -> Tensor:
    """Losses and gradients where the product is of the whole vocabulary."""
    labels_N1 = labels_N[:, None]
    index_N1 = labels_N1.where(labels_N1 != IGNORED, 0)
    sums = _sums(_logits(product_NP, bias_P, vocabulary, options.softcap), index_N1, vocabulary)
    return _losses_from_sums(product_NP, bias_P, labels_N, 0, vocabulary, vocabulary, *sums, with_gradient, options)


def _losses_from_sums(
    product_NP: Tensor,
    bias_P: Tensor | None,
    labels_N: Tensor,
    first: int,
    size: int,
    vocabulary: int,
    largest_N1: Tensor,
    sum_N1: Tensor,
    target_N1: Tensor,
    total_N1: Tensor,
    with_gradient: bool,
    options: LossOptions,
) -> Tensor:
    """Losses (N,); the gradient overwrites the product, whose columns are the ids [first, first + size)."""
    softcap, z_loss, label_smoothing = options.softcap, options.z_loss, options.label_smoothing
    labels_N1 = labels_N[:, None]
    is_target_N1 = labels_N1 != IGNORED
    log_sum_N1 = sum_N1.log()
    log_denominator_N1 = largest_N1 + log_sum_N1
    loss_N1 = largest_N1 - target_N1
    if label_smoothing:
        loss_N1 = loss_N1.lerp(largest_N1 - total_N1 / vocabulary, label_smoothing)
    loss_N1 = loss_N1 + log_sum_N1 + z_loss * log_denominator_N1.square()
    if with_gradient:
        # The logits are computed again from the product, so that they need no memory.
        logits_NP = _logits(product_NP, bias_P, size, softcap)
        gradient_NP = (logits_NP - largest_N1).exp() * ((1 + 2 * z_loss * log_denominator_N1) / sum_N1)
        ids_P = torch.arange(product_NP.shape[1], device=product_NP.device)
        if label_smoothing:
            gradient_NP = gradient_NP - label_smoothing / vocabulary
        gradient_NP = gradient_NP - torch.where(ids_P == labels_N1 - first, 1 - label_smoothing, 0.0)
        if softcap is not None:
            gradient_NP = gradient_NP * (1 - (logits_NP / softcap).square())
        product_NP.copy_(torch.where(is_target_N1 & (ids_P < size), gradient_NP, 0.0))
    return (loss_N1 * is_target_N1)[:, 0]
