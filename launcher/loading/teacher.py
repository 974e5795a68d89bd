"""Distillation: opening the teacher, and attaching it to the model that learns."""

from collections.abc import Sequence
from pathlib import Path

import torch

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.launcher.config.distillation import Distillation
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.loading.language_model import load_for_inference
from ingot.launcher.tasks.task_kind import TaskKind
from ingot.model.finetuning.distillation import add_teacher
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.huggingface.load import load
from ingot.model.huggingface.mapping.family import default_labels
from ingot.model.transformer import LanguageModel


def learn_from(
    settings: Distillation,
    model: TaskModel | LanguageModel,
    *,
    tokenizer: Tokenizer,
    length: int,
    precision: str,
    device: torch.device,
    kind: TaskKind | None = None,
    labels: Sequence[str] = (),
) -> None:
    """Makes a model, still on the meta device, learn from the configured teacher; does nothing if there is none.

    Args:
        length: most tokens of a text.
        precision: in which the teacher computes.
        kind: of the task; None while pretraining.
        labels: of the task.

    Raises:
        ValueError: there is no teacher, or it has other labels, another tokenizer or shape, or fewer positions.
    """
    path = settings.teacher
    if path is None:
        return
    teacher: LanguageModel | TaskModel
    if kind is None or kind.head is None:
        teacher, own = load_for_inference(path, None, device)
    else:
        teacher, own = _task_teacher(path, kind, list(labels), device)
    if own.pieces() != tokenizer.pieces():
        raise ValueError(f"the teacher {path} has another tokenizer than the model that learns from it")
    if length > teacher.config.max_position_embeddings:
        raise ValueError(
            f"the teacher {path} has {teacher.config.max_position_embeddings} positions, and texts have up to {length} "
            f"tokens"
        )
    add_teacher(
        model,
        teacher.bfloat16() if precision == "bf16" else teacher,
        weight=settings.weight,
        temperature=settings.temperature,
        hidden_weight=settings.hidden_weight,
    )


def _task_teacher(path: str, kind: TaskKind, labels: list[str], device: torch.device) -> tuple[TaskModel, Tokenizer]:
    assert kind.head is not None
    if (Path(path) / "config.json").is_file():
        model, own = load(path, kind.head.kind, device=device), load_tokenizer(path)
        assert isinstance(model, TaskModel)  # of a kind that has a head
        names = model.task.labels or default_labels(model.task.num_labels)
    else:
        found = open_finetuned(path, device)
        model, own, names = found.model, found.tokenizer, found.labels
        if not isinstance(model, TaskModel):
            raise ValueError(f"the teacher {path} is a language model, and the task {kind.name} has a head")
    if kind.same_teacher_labels and list(names) != labels:
        raise ValueError(
            f"the teacher {path} knows the labels {', '.join(names)}, and the task has {', '.join(labels)}"
        )
    return model, own
