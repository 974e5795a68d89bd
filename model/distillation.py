"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): a model learns what a larger one answers.

Legend: B rows, T time, D width, C classes, S examples, K targets: examples, or tokens with a label.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.task_model import TaskModel, label_loss


class Distilled(TaskModel):
    """(1 - weight) x the task's loss + weight x temperature^2 x KL(teacher || student) at that temperature, and
    `hidden_weight` x the mean squared difference of the last block's outputs, all summed over the targets.

    The teacher is no part of the module: it has no gradient, and no engine cuts it. For classes, choices, and tokens.
    """

    teacher_weight: float
    temperature: float
    hidden_weight: float

    def forward(self, *args, labels: Tensor | None = None, label_smoothing: float = 0.0, **inputs) -> Tensor:
        """As `TaskModel.forward`; with the teacher where it is trained."""
        if labels is None or not self.training:
            return super().forward(*args, labels=labels, label_smoothing=label_smoothing, **inputs)
        teacher: TaskModel = self._teacher[0]
        seen: list[Tensor] = []
        hooks = [model.blocks[-1].register_forward_hook(_keep(seen)) for model in (self, teacher)]
        try:
            logits = super().forward(*args, **inputs).float()
            with torch.no_grad():
                wanted = teacher(*args, **inputs).float()
        finally:
            for hook in hooks:
                hook.remove()
        loss = label_loss(logits, labels, self.task.problem, label_smoothing)
        shape = (len(labels), -1) if self.task.problem == "choice" else (labels.numel(), -1)
        known_K = labels.flatten() >= 0
        mine, right = (
            (values.reshape(shape)[known_K] / self.temperature).log_softmax(-1) for values in (logits, wanted)
        )
        divergence = nn.functional.kl_div(mine, right, reduction="sum", log_target=True) * self.temperature**2
        loss = (1 - self.teacher_weight) * loss + self.teacher_weight * divergence
        if self.hidden_weight:
            apart = (seen[0].float() - seen[1].float()).square().mean()
            loss = loss + self.hidden_weight * apart * known_K.sum()
        return loss


def _keep(seen: list[Tensor]):
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen.append(output)

    return hook


def distil(
    model: TaskModel, teacher: TaskModel, *, weight: float, temperature: float, hidden_weight: float = 0.0
) -> None:
    """Lets `model` learn from `teacher`, which is on its device and stays as it is. Parameters keep their names.

    Raises:
        ValueError: the teacher has another number of labels, or with `hidden_weight` another width.
    """
    if teacher.task.kind != model.task.kind or teacher.task.num_labels != model.task.num_labels:
        raise ValueError(
            f"the teacher is of kind {teacher.task.kind} with {teacher.task.num_labels} labels, and the model of kind "
            f"{model.task.kind} with {model.task.num_labels}"
        )
    if hidden_weight and teacher.config.width != model.config.width:
        raise ValueError(
            f"the teacher's hidden states have {teacher.config.width} features, and the model's {model.config.width}; "
            f"leave out method.hidden_weight"
        )
    model.__class__ = Distilled
    model.teacher_weight, model.temperature, model.hidden_weight = weight, temperature, hidden_weight
    object.__setattr__(model, "_teacher", [teacher.eval().requires_grad_(False)])
