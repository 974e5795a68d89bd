"""Loading: a Hugging Face folder or hub name -> a LanguageModel or TaskModel."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import Problem, TaskConfig, TaskModel
from ingot.model.huggingface.families.registry import family_of, kind_of
from ingot.model.huggingface.files import find_folder, open_weights, read_config
from ingot.model.huggingface.mapping.family import LANGUAGE_KINDS
from ingot.model.huggingface.mapping.key_map import MappedTensor, map_tensors
from ingot.model.huggingface.matching import canonical, match, shapes_of
from ingot.model.initialization import InitialValues
from ingot.model.transformer import LanguageModel

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")


class ReleasedModel:
    """The model of a folder before its memory is allocated: all is checked, and each parameter can be read separately.

    Attributes:
        config, task: configuration of the model; `task` is None for a language model.
        new: parameters that the files do not have and that get first values.

    Arguments and errors are those of `load`.
    """

    def __init__(
        self,
        path_or_name: str | Path,
        kind: str | None = None,
        *,
        new_head: bool = False,
        labels: int | list[str] | None = None,
        problem: Problem | None = None,
        seed: int = 0,
        revision: str | None = None,
    ):
        if labels is not None and not new_head:
            raise ValueError("labels belong to a new head; set new_head")
        self.folder = folder = find_folder(path_or_name, revision)
        values = read_config(folder)
        try:
            family = family_of(values)
            kind_is_given, kind = kind is not None, kind_of(family, values, kind)
            config = family.read_model(values, kind)
            task = None if kind in LANGUAGE_KINDS else _with_labels(family.read_task(values, kind), labels, problem)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error

        self._weights = canonical(open_weights(folder), family, folder)
        if config.num_hidden_layers > len(self._weights):
            raise ValueError(
                f"{folder / 'config.json'} says {config.num_hidden_layers:,} layers, and the files have only "
                f"{len(self._weights):,} tensors"
            )
        if task is not None and task.kind == "features" and task.layer != "none":
            tensors, _ = map_tensors(family.heads[kind].rows, shapes_of(_on_meta(config, task)))
            if not any(tensor.name in self._weights for tensor in tensors):
                task = replace(task, layer="none")  # the body was saved without its pooler
        self.config, self.task = config, task
        model = self.model()
        self.shapes = shapes_of(model)
        new = {name for name in self.shapes if new_head and name in CLASSIFIER}
        self.tensors, self.new = match(model, family, kind, self._weights, folder, new, new_head, kind_is_given)
        self._values = InitialValues(model, seed)
        self._tensor_of = {name: (tensor, index) for tensor in self.tensors for index, name in enumerate(tensor.parts)}

    def model(self) -> LanguageModel | TaskModel:
        """The model on the meta device."""
        return _on_meta(self.config, self.task)

    def read(self, tensor: MappedTensor) -> Tensor:
        """A tensor of the files, with (out, in) matrices."""
        value = self._weights.read(tensor.name)
        return value.T if tensor.transposed else value

    def part(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The rectangle of `shape` at `offset` of a parameter, fp32 on the CPU."""
        if name in self.new:
            return self._values.part(name, offset, shape)
        tensor, index = self._tensor_of[name]
        begin = sum(self.shapes[other][0] for other in tensor.parts[:index])
        rectangle = [slice(o, o + n) for o, n in zip(offset, shape, strict=True)]
        if rectangle:
            rectangle[0] = slice(rectangle[0].start + begin, rectangle[0].stop + begin)
        return self.read(tensor)[tuple(rectangle)].float()


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

    All is checked before the memory of the model is allocated. Then the tensors are read into it one by one.

    Args:
        path_or_name: a folder with config.json and weights, or a name on the hub.
        kind: "language" or "pretraining" (with BERT's pair head) for a LanguageModel; "sequence", "token", "span" or
            "features" for a TaskModel. None: the kind that config.json names.
        dtype: dtype of the model; that of the file may differ.
        new_head: makes a new classifier, even if the file has one, and all other parameters of the head that the file
            does not have.
        labels: number or names of the labels of a new head.
        seed: random seed of new parameters.
        revision: revision of a hub name.

    Raises:
        ValueError: the folder is not a checkpoint, its model is not supported, or its weights do not fit.
    """
    released = ReleasedModel(path_or_name, kind, new_head=new_head, labels=labels, seed=seed, revision=revision)
    model = released.model().to(dtype).to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for tensor in released.tensors:
            value, begin = released.read(tensor), 0
            for name in tensor.parts:
                rows = parameters[name].shape[0]
                parameters[name].copy_(value[begin : begin + rows])
                begin += rows
        for name in released.new:
            shape = released.shapes[name]
            parameters[name].copy_(released.part(name, (0,) * len(shape), shape))
    return model.eval()


def _on_meta(config: ModelConfig, task: TaskConfig | None) -> LanguageModel | TaskModel:
    with torch.device("meta"):
        return LanguageModel(config) if task is None else TaskModel(config, task)


def _with_labels(task: TaskConfig, labels: int | list[str] | None, problem: Problem | None) -> TaskConfig:
    """The task with new labels. The problem type of the file does not apply to them."""
    if labels is None:
        return task
    number = labels if isinstance(labels, int) else len(labels)
    problem = problem or ("regression" if task.kind == "sequence" and number == 1 else "classes")
    return replace(task, num_labels=number, labels=None if isinstance(labels, int) else list(labels), problem=problem)
