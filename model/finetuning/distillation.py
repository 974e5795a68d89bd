"""Knowledge distillation (Hinton et al. 2015, arXiv 1503.02531): a model is trained on the outputs of a larger one.

The loss is (1 - weight) x loss of the labels + weight x temperature^2 x KL(teacher || student) at that temperature
+ `hidden_weight` x the mean squared difference of the outputs of the last blocks, all summed over the targets.

The teacher is not a submodule of the student: it has no gradients, and no engine shards it.

Legend: N rows, D hidden size, V vocabulary, K rows with a label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ingot.model.cross_entropy import IGNORED
from ingot.model.finetuning.task_model import TaskModel, label_loss
from ingot.model.heads import LanguageModelHead
from ingot.model.loss import keep_targets, rows_at_a_time
from ingot.model.transformer import LanguageModel, Transformer


@dataclass(frozen=True)
class Distillation:
    """A teacher, on the device of the student, and the weights of its terms of the loss."""

    teacher: TaskModel | LanguageModel
    weight: float
    temperature: float
    hidden_weight: float

    def kl_loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        """temperature^2 x KL(teacher || student) at the temperature, of logits (..., C), summed; fp32."""
        student, teacher = ((logits.float() / self.temperature).log_softmax(-1) for logits in (student, teacher))
        return nn.functional.kl_div(student, teacher, reduction="sum", log_target=True) * self.temperature**2

    def hidden_loss(self, outputs: list[Tensor], num_targets: Tensor) -> Tensor | float:
        """The term of the last hidden states, of student and teacher."""
        if not self.hidden_weight:
            return 0.0
        return self.hidden_weight * (outputs[0].float() - outputs[1].float()).square().mean() * num_targets


class DistilledTask(TaskModel):
    """A task model with a teacher: for classes, choices and tokens."""

    _distillation: Distillation

    def forward(self, *args: Any, labels: Tensor | None = None, label_smoothing: float = 0.0, **inputs: Any) -> Tensor:
        """As `TaskModel.forward`, with the teacher in training."""
        forward: Callable[..., Tensor] = super().forward
        if labels is None or not self.training:
            return forward(*args, labels=labels, label_smoothing=label_smoothing, **inputs)
        distillation = self._distillation
        with _last_blocks(self, distillation.teacher) as outputs:
            logits = forward(*args, **inputs).float()
            with torch.no_grad():
                teacher_logits = distillation.teacher(*args, **inputs).float()
        loss = label_loss(logits, labels, self.task.problem, label_smoothing)
        shape = (len(labels), -1) if self.task.problem == "choice" else (labels.numel(), -1)
        known_K = labels.flatten() >= 0
        student_K, teacher_K = (values.reshape(shape)[known_K] for values in (logits, teacher_logits))
        kl_loss, hidden_loss = (
            distillation.kl_loss(student_K, teacher_K),
            distillation.hidden_loss(outputs, known_K.sum()),
        )
        return (1 - distillation.weight) * loss + distillation.weight * kl_loss + hidden_loss


class DistilledLanguageModel(LanguageModel):
    """A language model with a teacher: for next tokens and for masked tokens."""

    _distillation: Distillation

    def forward(self, *args: Any, labels_BT: Tensor | None = None, **inputs: Any) -> Tensor:
        """As `LanguageModel.forward`, with the teacher in training."""
        forward: Callable[..., Tensor] = super().forward
        if labels_BT is None or not self.training:
            return forward(*args, labels_BT=labels_BT, **inputs)
        distillation, labels_N = self._distillation, labels_BT.flatten()
        head = cast(DistilledHead, self.head)
        body = {name: value for name, value in inputs.items() if name in _BODY}
        with _last_blocks(self, distillation.teacher) as outputs:
            with torch.no_grad():
                teacher_BTD = distillation.teacher.hidden_states(*args, **body)
            head.teacher_ND = keep_targets(teacher_BTD.flatten(0, 1), labels_N, inputs.get("target_rows"))[0]
            try:
                loss = forward(*args, labels_BT=labels_BT, **inputs)
            finally:
                head.teacher_ND = None
        return loss + distillation.hidden_loss(outputs, (labels_N != IGNORED).sum())


_BODY = ("input_ids_BT", "positions_BT", "cu_seqlens", "token_types_BT", "attention_mask_BS")


class DistilledHead(LanguageModelHead):
    """Computes the KL divergence one chunk of rows after the other, and again in the backward pass: the logits of all
    rows, of two models, would need too much memory."""

    teacher_ND: Tensor | None = None
    _distillation: Distillation

    def forward(
        self, hidden: Tensor, labels: Tensor | None = None, *, target_rows: Tensor | None = None, **options: float
    ) -> Tensor:
        """As `LanguageModelHead.forward`, with the KL divergence from the teacher, whose hidden states of the rows with
        a label are `teacher_ND`."""
        loss = super().forward(hidden, labels, target_rows=target_rows, **options)
        if self.teacher_ND is None:
            return loss
        assert labels is not None  # `DistilledLanguageModel.forward` sets `teacher_ND` only with labels
        distillation = self._distillation
        hidden_ND, _ = keep_targets(hidden.flatten(0, -2), labels.flatten(), target_rows)
        rows, _ = rows_at_a_time(len(hidden_ND), len(self.weight), 4, hidden.device.type)
        chunks = zip(hidden_ND.split(rows), self.teacher_ND.split(rows), strict=True)
        kl_loss = sum(checkpoint(self._kl_loss, *chunk, use_reentrant=False) for chunk in chunks)
        return (1 - distillation.weight) * loss + distillation.weight * kl_loss

    def _kl_loss(self, hidden_ND: Tensor, teacher_ND: Tensor) -> Tensor:
        with torch.no_grad():
            teacher_NV = self._distillation.teacher.head(teacher_ND)
        return self._distillation.kl_loss(super().forward(hidden_ND), teacher_NV)


@contextmanager
def _last_blocks(*models: Transformer) -> Iterator[list[Tensor]]:
    """The outputs of the last blocks of the models, in the order in which they run."""
    outputs: list[Tensor] = []
    last = [model.blocks[-1] for model in models]
    hooks = [block.register_forward_hook(lambda module, args, output: outputs.append(output)) for block in last]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def add_teacher(
    model: TaskModel | LanguageModel,
    teacher: TaskModel | LanguageModel,
    *,
    weight: float,
    temperature: float,
    hidden_weight: float = 0.0,
) -> None:
    """Trains `model` with `teacher`, which is on the same device and does not change.

    The classes of the model and its head are replaced, because a wrapper module would change the names of parameters,
    on which checkpoints, engines and exports rely.

    Raises:
        ValueError: the teacher is of another kind, has another number of labels or of token ids, or, with
            `hidden_weight`, another hidden_size.
    """
    student_kind, teacher_kind = _kind(model), _kind(teacher)
    if student_kind != teacher_kind:
        raise ValueError(f"the teacher is {teacher_kind}, and the model is {student_kind}; choose another teacher")
    if hidden_weight and teacher.config.hidden_size != model.config.hidden_size:
        raise ValueError(
            f"the hidden_size of the teacher is {teacher.config.hidden_size}, and that of the model "
            f"{model.config.hidden_size}; set hidden_weight to 0"
        )
    distillation = Distillation(teacher.eval().requires_grad_(False), weight, temperature, hidden_weight)
    model.__class__ = DistilledTask if isinstance(model, TaskModel) else DistilledLanguageModel
    modules: list[nn.Module] = [model]
    if isinstance(model, LanguageModel):
        model.head.__class__ = DistilledHead
        modules.append(model.head)
    for module in modules:
        object.__setattr__(module, "_distillation", distillation)  # so that the teacher is not a submodule


def _kind(model: TaskModel | LanguageModel) -> str:
    if isinstance(model, TaskModel):
        return f"a {model.task.kind} model with {model.task.num_labels} labels"
    kind = "causal" if model.config.causal else "masked"
    return f"a {kind} language model with vocab_size {model.config.vocab_size}"
