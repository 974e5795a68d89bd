"""Cross-entropy of a block of logits, which are replaced in place by their gradients.

It is written for operators that run one by one: on a CPU a block stays in the caches between them. For GPUs there is
`model/fused_cross_entropy.py`.

Legend: N rows (tokens), V vocabulary, or a part of it.
"""

from __future__ import annotations

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


@dataclass(frozen=True)
class LossOptions:
    """What is added to the plain cross-entropy: the arguments of `linear_cross_entropy` of the same names."""

    softcap: float | None = None
    z_loss: float = 0.0
    label_smoothing: float = 0.0


def cross_entropy(
    product_NV: Tensor,
    bias_V: Tensor | None,
    labels_N: Tensor,
    with_gradient: bool,
    bias_gradient_V: Tensor | None,
    options: LossOptions,
    part: VocabularyPart | None,
) -> Tensor:
    """Losses (N,) of a product of hidden states and weight. With `with_gradient` their gradient overwrites the product,
    and its sum over the rows is added to the gradient of the bias."""
    softcap, z_loss, label_smoothing = options.softcap, options.z_loss, options.label_smoothing
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
