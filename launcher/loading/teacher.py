"""Learning from another model: opening it, and putting it beside the one that learns."""

from pathlib import Path

import torch

from ingot.data.tokenizers.tokenizer import Tokenizer, load_tokenizer
from ingot.launcher.config.distillation import Distillation
from ingot.launcher.loading.base_model import HEADS
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.loading.language_model import load_for_inference
from ingot.model.finetuning.distillation import distil
from ingot.model.finetuning.task_model import TaskModel
from ingot.model.huggingface.load import load
from ingot.model.huggingface.mapping.family import default_labels
from ingot.model.transformer import LanguageModel


def learn_from(
    settings: Distillation,
    model: TaskModel | LanguageModel,
    *,
    kind: str,
    labels: list[str],
    tokenizer: Tokenizer,
    length: int,
    precision: str,
    device: torch.device,
) -> None:
    """Lets a model, on the meta device still, learn from the teacher that is configured, which computes in `precision`;
    nothing where none is.

    Args:
        kind: of task; `generation` and `language` need a language model.
        labels: of the task.
        length: tokens of the longest text that it will be given.

    Raises:
        ValueError: nothing there, or it has other labels, another tokenizer or shape, or fewer positions.
    """
    path = settings.teacher
    if path is None:
        return
    if kind in ("generation", "language"):
        teacher, own = load_for_inference(path, None, device)
    else:
        teacher, own = _task_teacher(path, kind, labels, device)
    if own.pieces() != tokenizer.pieces():
        raise ValueError(f"the teacher {path} has another tokenizer than the model that is to learn")
    if length > teacher.config.max_position_embeddings:
        raise ValueError(
            f"the teacher {path} has {teacher.config.max_position_embeddings} positions, and texts have up to {length} tokens"
        )
    distil(
        model,
        teacher.bfloat16() if precision == "bf16" else teacher,
        weight=settings.weight,
        temperature=settings.temperature,
        hidden_weight=settings.hidden_weight,
    )


def _task_teacher(path: str, kind: str, labels: list[str], device: torch.device) -> tuple[TaskModel, Tokenizer]:
    if (Path(path) / "config.json").is_file():
        model, own = load(path, HEADS.get(kind, "sequence"), device=device), load_tokenizer(path)
        names = model.task.labels or default_labels(model.task.num_labels)
    else:
        found = open_finetuned(path, device)
        model, own, names = found.model, found.tokenizer, found.labels
    if kind != "choice" and list(names) != labels:
        raise ValueError(
            f"the teacher {path} knows the labels {', '.join(names)}, and the task has {', '.join(labels)}"
        )
    return model, own
