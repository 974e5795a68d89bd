"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): a model learns what a larger one answers.

The loss becomes (1 - weight) x that of the labels + weight x temperature^2 x KL(teacher || student) at that temperature
+ `hidden_weight` x the mean squared difference of the last block's outputs, all summed over the targets.

The teacher is no part of the module: it has no gradient, and no engine cuts it.

Legend: N rows, D width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ingot.model.finetuning.task_model import TaskModel, label_loss
from ingot.model.heads import LanguageModelHead
from ingot.model.loss import IGNORED, keep_targets, rows_at_a_time
from ingot.model.transformer import LanguageModel, Transformer


@dataclass(frozen=True)
class Teaching:
    """A teacher, on the student's device, and how much of it is learned."""

    teacher: TaskModel | LanguageModel
    weight: float
    temperature: float
    hidden_weight: float

    def divergence(self, mine: Tensor, wanted: Tensor) -> Tensor:
        """temperature^2 x KL(wanted || mine) at the temperature, of logits (..., C), summed; fp32."""
        mine, wanted = ((logits.float() / self.temperature).log_softmax(-1) for logits in (mine, wanted))
        return nn.functional.kl_div(mine, wanted, reduction="sum", log_target=True) * self.temperature**2

    def apart(self, seen: list[Tensor], num_targets: Tensor) -> Tensor | float:
        """What the last hidden states add to the loss."""
        if not self.hidden_weight:
            return 0.0
        return self.hidden_weight * (seen[0].float() - seen[1].float()).square().mean() * num_targets


class DistilledTask(TaskModel):
    """For classes, choices, and tokens."""

    _teaching: Teaching

    def forward(self, *args, labels: Tensor | None = None, label_smoothing: float = 0.0, **inputs) -> Tensor:
        """As `TaskModel.forward`; with the teacher where it is trained."""
        if labels is None or not self.training:
            return super().forward(*args, labels=labels, label_smoothing=label_smoothing, **inputs)
        teaching = self._teaching
        with _last_blocks(self, teaching.teacher) as seen:
            logits = super().forward(*args, **inputs).float()
            with torch.no_grad():
                wanted = teaching.teacher(*args, **inputs).float()
        loss = label_loss(logits, labels, self.task.problem, label_smoothing)
        shape = (len(labels), -1) if self.task.problem == "choice" else (labels.numel(), -1)
        known_K = labels.flatten() >= 0
        divergence = teaching.divergence(*(values.reshape(shape)[known_K] for values in (logits, wanted)))
        return (1 - teaching.weight) * loss + teaching.weight * divergence + teaching.apart(seen, known_K.sum())


class DistilledLanguageModel(LanguageModel):
    """For next tokens, and for masked ones."""

    _teaching: Teaching

    def forward(self, *args, labels_BT: Tensor | None = None, **inputs) -> Tensor:
        """As `LanguageModel.forward`; with the teacher where it is trained."""
        if labels_BT is None or not self.training:
            return super().forward(*args, labels_BT=labels_BT, **inputs)
        teaching, labels_N = self._teaching, labels_BT.flatten()
        body = {name: value for name, value in inputs.items() if name in _BODY}
        with _last_blocks(self, teaching.teacher) as seen:
            with torch.no_grad():
                wanted_BTD = teaching.teacher.hidden_states(*args, **body)
            self.head.wanted_ND = keep_targets(wanted_BTD.flatten(0, 1), labels_N)[0]
            try:
                loss = super().forward(*args, labels_BT=labels_BT, **inputs)
            finally:
                self.head.wanted_ND = None
        return loss + teaching.apart(seen, (labels_N != IGNORED).sum())


_BODY = ("input_ids_BT", "positions_BT", "cu_seqlens", "token_types_BT", "attention_mask_BS")


class DistilledHead(LanguageModelHead):
    """Takes the divergence a chunk of rows at a time, and computes it once more in the backward pass: the logits of all
    rows, of two models, would be what fills the memory."""

    wanted_ND: Tensor | None = None
    _teaching: Teaching

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, z_loss: float = 0.0, label_smoothing: float = 0.0
    ) -> Tensor:
        """As `LanguageModelHead.forward`, with the divergence from the teacher's head on `wanted_ND`, its hidden states
        of the rows with a label."""
        loss = super().forward(hidden, labels, z_loss, label_smoothing)
        if self.wanted_ND is None:
            return loss
        hidden_ND, _ = keep_targets(hidden.flatten(0, -2), labels.flatten())
        rows, _ = rows_at_a_time(len(hidden_ND), len(self.weight), 4, hidden.device.type)
        parts = zip(hidden_ND.split(rows), self.wanted_ND.split(rows), strict=True)
        divergence = sum(checkpoint(self._divergence, *part, use_reentrant=False) for part in parts)
        return (1 - self._teaching.weight) * loss + self._teaching.weight * divergence

    def _divergence(self, hidden_ND: Tensor, wanted_ND: Tensor) -> Tensor:
        with torch.no_grad():
            wanted_NV = self._teaching.teacher.head(wanted_ND)
        return self._teaching.divergence(super().forward(hidden_ND), wanted_NV)


@contextmanager
def _last_blocks(*models: Transformer) -> Iterator[list[Tensor]]:
    """What the last blocks of the models give, in the order in which they run."""
    seen: list[Tensor] = []
    hooks = [model.blocks[-1].register_forward_hook(lambda module, args, output: seen.append(output))
             for model in models]  # fmt: skip
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def distil(
    model: TaskModel | LanguageModel,
    teacher: TaskModel | LanguageModel,
    *,
    weight: float,
    temperature: float,
    hidden_weight: float = 0.0,
) -> None:
    """Lets `model` learn from `teacher`, which is on its device and stays as it is. Parameters keep their names.

    Raises:
        ValueError: the teacher is of another kind, has another number of labels or of token ids, or with
            `hidden_weight` another width.
    """
    mine, other = _kind(model), _kind(teacher)
    if mine != other:
        raise ValueError(f"the teacher is {other}, and the model {mine}")
    if hidden_weight and teacher.config.hidden_size != model.config.hidden_size:
        raise ValueError(
            f"the teacher's hidden states have {teacher.config.hidden_size} features, and the model's {model.config.hidden_size}; "
            f"set hidden_weight to 0"
        )
    teaching = Teaching(teacher.eval().requires_grad_(False), weight, temperature, hidden_weight)
    model.__class__ = DistilledTask if isinstance(model, TaskModel) else DistilledLanguageModel
    learners: list[nn.Module] = [model]
    if isinstance(model, LanguageModel):
        model.head.__class__ = DistilledHead
        learners.append(model.head)
    for learner in learners:
        object.__setattr__(learner, "_teaching", teaching)


def _kind(model: TaskModel | LanguageModel) -> str:
    if isinstance(model, TaskModel):
        return f"of kind {model.task.kind} with {model.task.num_labels} labels"
    how = "next" if model.config.causal else "masked"
    return f"a model of {how} tokens with {model.config.vocab_size} ids"
