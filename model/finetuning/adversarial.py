"""Regularised training: two passes with dropout that must agree (R-Drop), and adversarial perturbations of embeddings.

Legend: B rows, T time, N flattened tokens (B * T), D hidden size, C classes, S examples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any, cast

import torch
from torch import Tensor, nn

from ingot.model.attention.masks import segments_of
from ingot.model.finetuning.task_model import TaskModel, label_loss


class RDrop(TaskModel):
    """R-Drop (Liang et al. 2021, arXiv 2106.14448): the mean loss of two passes with different dropout, plus
    `r_drop` / 2 times the KL divergences between their classes in both directions."""

    r_drop: float

    def forward(self, *args: Any, labels: Tensor | None = None, label_smoothing: float = 0.0, **inputs: Any) -> Tensor:
        """As `TaskModel.forward`, with two passes in training."""
        forward: Callable[..., Tensor] = super().forward
        if labels is None or not self.training:
            return forward(*args, labels=labels, label_smoothing=label_smoothing, **inputs)
        both = [forward(*args, **inputs).float() for _ in range(2)]
        losses = [label_loss(logits, labels, self.task.problem, label_smoothing) for logits in both]
        first, second = (logits.view(len(labels), -1).log_softmax(-1) for logits in both)
        divergence_S = ((first.exp() - second.exp()) * (first - second)).sum(-1)  # KL in both directions
        return (losses[0] + losses[1]) / 2 + self.r_drop / 2 * divergence_S[labels >= 0].sum()


class Adversarial(TaskModel):
    """The mean loss over several perturbations of the embeddings, each one gradient step from the one before.

    With `adversarial_steps` 0 it is FGM (Miyato et al. 2017, arXiv 1605.07725): the loss at the embeddings themselves,
    and at a perturbation of norm `adversarial_norm` along the gradient of each example. With more steps it is FreeLB
    (Zhu et al. 2020, arXiv 1909.11764): that number of losses, starting at a random perturbation; the norms stay below
    `adversarial_norm`.
    """

    adversarial_norm: float
    adversarial_steps: int

    def forward(self, *args: Any, labels: Tensor | None = None, **inputs: Any) -> Tensor:
        """As `TaskModel.forward`, with several passes in training."""
        forward: Callable[..., Tensor] = super().forward
        if labels is None or not self.training:
            return forward(*args, labels=labels, **inputs)
        steps = self.adversarial_steps
        losses: list[Tensor] = []
        delta: Tensor | None = None
        for step in range(max(2, steps)):
            embedded: list[Tensor] = []
            hook = self.embedding.register_forward_hook(_perturb(delta, embedded, self.adversarial_norm * bool(steps)))
            try:
                losses.append(forward(*args, labels=labels, **inputs))
            finally:
                hook.remove()
            if step + 1 < max(2, steps):
                (gradient,) = torch.autograd.grad(losses[-1], embedded[1], retain_graph=True)
                cu_seqlens = inputs.get("cu_seqlens")
                length = self.adversarial_norm * (2 / steps if steps else 1.0)
                moved = length * gradient / example_norms(gradient, cu_seqlens).clamp(min=1e-12)
                delta = moved if not steps else embedded[0] + moved
                scale = self.adversarial_norm / example_norms(delta, cu_seqlens).clamp(min=1e-12)
                delta = delta * scale.clamp(max=1.0)
        return reduce(torch.add, losses) / len(losses)


def _perturb(
    delta: Tensor | None, embedded: list[Tensor], noise_norm: float
) -> Callable[[nn.Module, tuple, Tensor], Tensor]:
    """A hook that adds `delta`, or noise of about the norm `noise_norm` if it is None. It appends to `embedded` what it
    added and the result."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        added = delta
        if added is None:
            noise = torch.rand_like(output) * 2 - 1
            added = noise * (noise_norm / (output.shape[-2] * output.shape[-1]) ** 0.5)
        embedded.append(added.detach().to(output.dtype))
        embedded.append(output + embedded[0])
        return embedded[1]

    return hook


def example_norms(x_BTD: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The norm over all tokens and features of each example, (B, T, 1): the same value for all its tokens."""
    square_BT = x_BTD.float().square().sum(-1)
    if cu_seqlens is None:
        return square_BT.sum(-1, keepdim=True).sqrt()[..., None].expand(*square_BT.shape, 1)
    segments_N = segments_of(cu_seqlens, square_BT.numel())
    sums_S = square_BT.new_zeros(len(cu_seqlens) - 1).index_add_(0, segments_N, square_BT.flatten())
    return sums_S.sqrt()[segments_N].view(*square_BT.shape, 1)


def add_regularizer(model: TaskModel, adversarial: str, norm: float, steps: int, r_drop: float) -> None:
    """Trains a task model with R-Drop if `r_drop` is not 0, else with `adversarial`: none, fgm or freelb.

    The class of the model is replaced, because a wrapper module would change the names of its parameters, on which
    checkpoints, engines and exports rely.
    """
    if r_drop:
        model.__class__ = RDrop
        cast(RDrop, model).r_drop = r_drop
    elif adversarial != "none":
        model.__class__ = Adversarial
        with_steps = cast(Adversarial, model)
        with_steps.adversarial_norm = norm
        with_steps.adversarial_steps = steps if adversarial == "freelb" else 0
