"""A Hugging Face folder or hub name -> a module of ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ingot.model.config import ModelConfig
from ingot.model.finetuning.task_model import TaskConfig, TaskModel
from ingot.model.huggingface.families.registry import family_of, kind_of
from ingot.model.huggingface.files import find_folder, open_weights, read_config
from ingot.model.huggingface.mapping.family import LANGUAGE_KINDS
from ingot.model.huggingface.mapping.key_map import Placed, arrange
from ingot.model.huggingface.matching import match, shapes_of, spelled
from ingot.model.initialization import InitialValues
from ingot.model.transformer import LanguageModel

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")


class Source:
    """A folder's model before it has memory: everything is checked, and each parameter can be read by itself.

    Attributes:
        config, task: of the model; `task` is None for a language model.
        new: parameters that the files lack and that have first values.

    Args and errors as in `load`.
    """

    def __init__(
        self,
        path_or_name: str | Path,
        kind: str | None = None,
        *,
        new_head: bool = False,
        labels: int | list[str] | None = None,
        problem: str | None = None,
        seed: int = 0,
        revision: str | None = None,
    ):
        if labels is not None and not new_head:
            raise ValueError("labels are those of a new head; set new_head")
        self.folder = folder = find_folder(path_or_name, revision)
        values = read_config(folder)
        try:
            family = family_of(values)
            named, kind = kind is not None, kind_of(family, values, kind)
            config = family.read_model(values, kind)
            task = None if kind in LANGUAGE_KINDS else _with_labels(family.read_task(values, kind), labels, problem)
        except ValueError as error:
            raise ValueError(f"{folder / 'config.json'}: {error}") from error

        self._weights = spelled(open_weights(folder), family, folder)
        if task is not None and task.kind == "features" and task.layer != "none":
            placed, _ = arrange(family.heads[kind].rows, shapes_of(_on_meta(config, task)))
            if not any(each.name in self._weights for each in placed):
                task = replace(task, layer="none")  # a body that was saved without its pooler
        self.config, self.task = config, task
        model = self.model()
        self.shapes = shapes_of(model)
        new = {name for name in self.shapes if new_head and name in CLASSIFIER}
        self.placed, self.new = match(model, family, kind, self._weights, folder, new, new_head, named)
        self._values = InitialValues(model, seed)
        self._place = {name: (each, number) for each in self.placed for number, name in enumerate(each.parts)}

    def model(self) -> LanguageModel | TaskModel:
        """The model on the meta device."""
        return _on_meta(self.config, self.task)

    def read(self, each: Placed) -> Tensor:
        """One of their tensors, turned as ours are."""
        value = self._weights.read(each.name)
        return value.T if each.transposed else value

    def part(self, name: str, offset: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
        """The box of `shape` at `offset` of a parameter, fp32 on the CPU."""
        if name in self.new:
            return self._values.part(name, offset, shape)
        each, number = self._place[name]
        begin = sum(self.shapes[other][0] for other in each.parts[:number])
        box = [slice(o, o + n) for o, n in zip(offset, shape, strict=True)]
        if box:
            box[0] = slice(box[0].start + begin, box[0].stop + begin)
        return self.read(each)[tuple(box)].float()


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
    source = Source(path_or_name, kind, new_head=new_head, labels=labels, seed=seed, revision=revision)
    model = source.model().to(dtype).to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for each in source.placed:
            value, begin = source.read(each), 0
            for name in each.parts:
                rows = parameters[name].shape[0]
                parameters[name].copy_(value[begin : begin + rows])
                begin += rows
        for name in source.new:
            shape = source.shapes[name]
            parameters[name].copy_(source.part(name, (0,) * len(shape), shape))
    return model.eval()


def _on_meta(config: ModelConfig, task: TaskConfig | None) -> LanguageModel | TaskModel:
    with torch.device("meta"):
        return LanguageModel(config) if task is None else TaskModel(config, task)


def _with_labels(task: TaskConfig, labels: int | list[str] | None, problem: str | None) -> TaskConfig:
    """A task of other labels; of what kind the file's problem was, no longer matters."""
    if labels is None:
        return task
    number = labels if isinstance(labels, int) else len(labels)
    problem = problem or ("regression" if task.kind == "sequence" and number == 1 else "classes")
    return replace(task, num_labels=number, labels=None if isinstance(labels, int) else list(labels), problem=problem)
