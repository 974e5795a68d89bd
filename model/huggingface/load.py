"""A Hugging Face folder or hub name -> a module of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from model.config import ModelConfig
from model.huggingface.families import family_of, kind_of
from model.huggingface.family import LANGUAGE_KINDS
from model.huggingface.files import find_folder, open_weights, read_config
from model.huggingface.matching import match, shapes_of, spelled
from model.huggingface.rows import arrange
from model.initialise import initial_values
from model.task_model import TaskConfig, TaskModel
from model.transformer import LanguageModel

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")


def load(
    path_or_name: str | Path,
    kind: str | None = None,
    dtype: torch.dtype = torch.float32,
    *,
    device: torch.device | str = "cpu",
    new_head: bool = False,
    labels: int | list[str] | None = None,
    seed: int = 0,
    revision: str | None = None,
) -> LanguageModel | TaskModel:
    """The model of a folder, in evaluation mode.

    Everything is checked before the model has memory; then one tensor after the other is read into it.

    Args:
        path_or_name: a folder with config.json and weights, or a name on the hub.
        kind: "language" or "pretraining" (with BERT's pair head) for a LanguageModel; "sequence", "token", "span" or
            "features" for a TaskModel. None is what config.json says that the file holds.
        dtype: of the model, whatever the file's.
        new_head: makes a classifier, whether the file has one or not, and whatever else of the head the file lacks.
        labels: of a new head: how many, or their names.
        seed: of what is made.
        revision: of a hub name.

    Raises:
        ValueError: no checkpoint, one of a kind that we cannot represent, or weights that do not fit.
    """
    if labels is not None and not new_head:
        raise ValueError("labels are those of a new head; set new_head")
    folder = find_folder(path_or_name, revision)
    values = read_config(folder)
    try:
        family = family_of(values)
        named, kind = kind is not None, kind_of(family, values, kind)
        config = family.read_model(values, kind)
        task = None if kind in LANGUAGE_KINDS else _with_labels(family.read_task(values, kind), labels)
    except ValueError as error:
        raise ValueError(f"{folder / 'config.json'}: {error}") from error

    weights = spelled(open_weights(folder), family, folder)
    if task is not None and task.kind == "features" and task.layer != "none":
        placed, _ = arrange(family.heads[kind].rows, shapes_of(_on_meta(config, task)))
        if not any(each.name in weights for each in placed):
            task = replace(task, layer="none")  # a body that was saved without its pooler
    model = _on_meta(config, task)
    new = {name for name in shapes_of(model) if new_head and name in CLASSIFIER}
    placed, new = match(model, family, kind, weights, folder, new, new_head, named)

    model = model.to(dtype).to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for each in placed:
            _copy(weights.read(each.name), [parameters[name] for name in each.parts], each.transposed)
        for name, value in initial_values(model, seed, only=new) if new else ():
            parameters[name].copy_(value)
    return model.eval()


def _copy(source: Tensor, parameters: list[Tensor], transposed: bool) -> None:
    source = source.T if transposed else source
    begin = 0
    for parameter in parameters:
        parameter.copy_(source[begin : begin + parameter.shape[0]])
        begin += parameter.shape[0]


def _on_meta(config: ModelConfig, task: TaskConfig | None) -> LanguageModel | TaskModel:
    with torch.device("meta"):
        return LanguageModel(config) if task is None else TaskModel(config, task)


def _with_labels(task: TaskConfig, labels: int | list[str] | None) -> TaskConfig:
    """A task of other labels; of what kind the file's problem was, no longer matters."""
    if labels is None:
        return task
    number = labels if isinstance(labels, int) else len(labels)
    problem = "regression" if task.kind == "sequence" and number == 1 else "classes"
    return replace(task, num_labels=number, labels=None if isinstance(labels, int) else list(labels), problem=problem)
