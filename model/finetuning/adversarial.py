"""Training against over-fitting: two passes that must agree, and disturbed embeddings.

Legend: B rows, T time, N flattened tokens (B * T), D width, C classes, S examples.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ingot.model.attention.attention import segments_of
from ingot.model.finetuning.task_model import TaskModel, label_loss


class RDrop(TaskModel):
    """R-Drop (Liang et al. 2021, arXiv 2106.14448): the mean loss of two passes with different dropout, and
    `r_drop` / 2 times the divergences between their classes both ways."""

    r_drop: float

    def forward(self, *args, labels: Tensor | None = None, label_smoothing: float = 0.0, **inputs) -> Tensor:
        """As `TaskModel.forward`; two passes where it is trained."""
        if labels is None or not self.training:
            return super().forward(*args, labels=labels, label_smoothing=label_smoothing, **inputs)
        both = [super(RDrop, self).forward(*args, **inputs).float() for _ in range(2)]
        loss = sum(label_loss(logits, labels, self.task.problem, label_smoothing) for logits in both) / 2
        first, second = (logits.view(len(labels), -1).log_softmax(-1) for logits in both)
        divergence_S = ((first.exp() - second.exp()) * (first - second)).sum(-1)  # KL one way and the other
        return loss + self.r_drop / 2 * divergence_S[labels >= 0].sum()


class Adversarial(TaskModel):
    """The mean loss over several disturbances of the embeddings, each a step along the gradient from the one before.

    With `adversarial_steps` 0 it is FGM (Miyato et al. 2017, arXiv 1605.07725): the loss at the embeddings themselves,
    and at a disturbance of norm `adversarial_norm` along the gradient, example by example. With more it is FreeLB (Zhu
    et al. 2020, arXiv 1909.11764): that many losses, from a random disturbance on, whose norms stay within it.
    """

    adversarial_norm: float
    adversarial_steps: int

    def forward(self, *args, labels: Tensor | None = None, **inputs) -> Tensor:
        """As `TaskModel.forward`; several passes where it is trained."""
        if labels is None or not self.training:
            return super().forward(*args, labels=labels, **inputs)
        steps = self.adversarial_steps
        losses, delta = [], None
        for step in range(max(2, steps)):
            embedded: list[Tensor] = []
            hook = self.embedding.register_forward_hook(_disturb(delta, embedded, self.adversarial_norm * bool(steps)))
            try:
                losses.append(super().forward(*args, labels=labels, **inputs))
            finally:
                hook.remove()
            if step + 1 < max(2, steps):
                (gradient,) = torch.autograd.grad(losses[-1], embedded[1], retain_graph=True)
                cu_seqlens = inputs.get("cu_seqlens")
                length = self.adversarial_norm * (2 / steps if steps else 1.0)
                moved = length * gradient / norms(gradient, cu_seqlens).clamp(min=1e-12)
                delta = moved if not steps else embedded[0] + moved
                delta = delta * (self.adversarial_norm / norms(delta, cu_seqlens).clamp(min=1e-12)).clamp(max=1.0)
        return sum(losses) / len(losses)


def _disturb(delta: Tensor | None, seen: list[Tensor], start: float):
    """A hook that adds `delta`, or without one noise of about the norm `start`; `seen` gets it, and what comes out."""

    def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
        added = delta
        if added is None:
            noise = torch.rand_like(output) * 2 - 1
            added = noise * (start / (output.shape[-2] * output.shape[-1]) ** 0.5)
        seen.append(added.detach().to(output.dtype))
        seen.append(output + seen[0])
        return seen[1]

    return hook


def norms(x_BTD: Tensor, cu_seqlens: Tensor | None) -> Tensor:
    """The norm over each example's tokens and features, (B, T, 1): the same for all tokens of an example."""
    square_BT = x_BTD.float().square().sum(-1)
    if cu_seqlens is None:
        return square_BT.sum(-1, keepdim=True).sqrt()[..., None].expand(*square_BT.shape, 1)
    segments_N = segments_of(cu_seqlens, square_BT.numel())
    sums_S = square_BT.new_zeros(len(cu_seqlens) - 1).index_add_(0, segments_N, square_BT.flatten())
    return sums_S.sqrt()[segments_N].view(*square_BT.shape, 1)


def make_robust(model: nn.Module, adversarial: str, norm: float, steps: int, r_drop: float) -> None:
    """Lets a task model train so; `adversarial` is none, fgm or freelb. Parameters keep their names."""
    if r_drop:
        model.__class__, model.r_drop = RDrop, r_drop
    elif adversarial != "none":
        model.__class__ = Adversarial
        model.adversarial_norm, model.adversarial_steps = norm, steps if adversarial == "freelb" else 0
