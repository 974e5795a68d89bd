"""A Hugging Face folder or hub name -> a module of ours."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.huggingface.families import family_of, kind_of
from model.huggingface.family import LANGUAGE_KINDS, Family
from model.huggingface.files import FLOATS, Weights, find_folder, open_weights, read_config, some
from model.huggingface.rows import BODY, Placed, arrange, is_of
from model.initialise import initial_values
from model.task_model import TaskConfig, TaskModel
from model.transformer import LanguageModel

CLASSIFIER = ("head.classifier.weight", "head.classifier.bias")
Values = dict[str, Any]


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

    weights = _spelled(open_weights(folder), family, folder)
    if task is not None and task.kind == "features" and task.layer != "none":
        placed, _ = arrange(family.heads[kind].rows, _shapes(_on_meta(config, task)))
        if not any(each.name in weights for each in placed):
            task = replace(task, layer="none")  # a body that was saved without its pooler
    model = _on_meta(config, task)
    new = {name for name in _shapes(model) if new_head and name in CLASSIFIER}
    placed, new = _match(model, family, kind, weights, folder, new, new_head, named)

    model = model.to(dtype).to_empty(device=device)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for each in placed:
            _copy(weights.read(each.name), [parameters[name] for name in each.parts], each.transposed)
        for name, value in initial_values(model, seed, only=new) if new else ():
            parameters[name].copy_(value)
    return model.eval()


class _Spelled:
    """Weights under the names that the key maps have."""

    def __init__(self, weights: Weights, spellings: dict[str, str]):
        self._weights, self._spellings = weights, spellings

    def __contains__(self, name: str) -> bool:
        return name in self._spellings

    def __iter__(self):
        return iter(self._spellings)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shapes[self._spellings[name]]

    def type(self, name: str) -> str:
        return self._weights.types[self._spellings[name]]

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._spellings[name])


def _spelled(weights: Weights, family: Family, folder: Path) -> _Spelled:
    """Names as in the key maps: no prefix of the body but `@`, no spellings of TensorFlow, no buffers of old files."""
    prefixes = {family.prefix, *(head.prefix for head in family.heads.values() if head.prefix)}
    rows = family.body + tuple(row for head in family.heads.values() for row in head.rows)
    spellings: dict[str, str] = {}
    for name in weights.shapes:
        new = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
        prefix = next((each for each in prefixes if new.startswith(each)), None)
        if prefix is not None:
            new = BODY + new.removeprefix(prefix)
        elif is_of(rows, BODY + new) or re.fullmatch(family.buffers, BODY + new):
            new = BODY + new
        if re.fullmatch(family.buffers, new):
            continue
        if new in spellings:
            raise ValueError(f"{folder} holds {spellings[new]} and {name}, which are the same")
        spellings[new] = name
    return _Spelled(weights, spellings)


def _match(
    model: nn.Module,
    family: Family,
    kind: str,
    weights: _Spelled,
    folder: Path,
    new: set[str],
    new_head: bool,
    named: bool,
) -> tuple[list[Placed], set[str]]:
    """Which tensor goes where, and the parameters that none goes to.

    Raises:
        ValueError: all that is missing, unexpected or of another shape.
    """
    config, shapes = model.config, _shapes(model)
    plain = lambda name: name.replace(BODY, family.prefix_of(kind))  # noqa: E731
    placed, unknown = arrange(family.rows(kind), {name: shape for name, shape in shapes.items() if name not in new})
    assert not unknown, f"{family.model_type} has no rows for {unknown}"
    found, missing, wrong, seen, lacks_head = [], [], [], set(), False
    for each in placed:
        if each.twin is not None and each.twin in weights:
            seen |= {each.name, each.twin}
            if each.name not in weights or not config.tie_head:  # untied, the second spelling is the one in use
                each = replace(each, name=each.twin)
            elif not torch.equal(weights.read(each.name), weights.read(each.twin)):
                wrong.append(f"{plain(each.name)} and {each.twin} are one parameter, and differ in the file")
        if each.name not in weights:
            if new_head and all(name.startswith(("head.", "pair_head.")) for name in each.parts):
                new.update(each.parts)
            else:
                missing.append(plain(each.name))
                lacks_head |= is_of(family.heads[kind].rows, each.name)
            continue
        seen.add(each.name)
        if weights.shape(each.name) != each.shape:
            wrong.append(f"{plain(each.name)} is {list(weights.shape(each.name))} there and {list(each.shape)} here")
        if weights.type(each.name) not in FLOATS:
            wrong.append(f"{plain(each.name)} is of type {weights.type(each.name)}, not a floating-point number")
        found.append(each)
    wrong += _problem_of_tie(model, family, kind, weights, seen)

    architecture = family.heads[kind].architecture
    others = tuple(row for head in family.heads.values() for row in head.rows)
    left = [name for name in weights if name not in seen]
    left_out = sorted(plain(name) for name in left if is_of(others, name))
    unexpected = sorted(plain(name) for name in left if not is_of(others, name))
    problems = [f"missing: {some(sorted(missing))}"] if missing else []
    problems += [f"unexpected: {some(unexpected)}"] if unexpected else []
    problems += [f"wrong: {some(wrong)}"] if wrong else []
    if problems:
        if lacks_head and not new_head:
            problems.append("new_head makes what a file lacks of a head")
        raise ValueError(f"the weights in {folder} do not fit a {architecture}: " + "; ".join(problems))
    if left_out and not named and not new_head:
        warnings.warn(f"{folder} holds more than a {architecture}: {some(left_out)}", stacklevel=3)
    return found, new


def _problem_of_tie(model: nn.Module, family: Family, kind: str, weights: _Spelled, seen: set[str]) -> list[str]:
    """A tied head may be in the file, but must be the embedding: readers differ in which of the two they would take."""
    if kind not in LANGUAGE_KINDS or not model.config.tie_head:
        return []
    shape = {"head.weight": tuple(model.head.weight.shape)}
    (head,), _ = arrange(family.rows(kind), shape)
    (table,), _ = arrange(family.body, {"embedding.token.weight": shape["head.weight"]})
    if head.name not in weights:
        return []
    seen.add(head.name)
    if table.name not in weights or torch.equal(weights.read(head.name), weights.read(table.name)):
        return []
    return [f"{head.name} is not the embedding, though tie_word_embeddings is true; set it to false to use both"]


def _copy(source: Tensor, parameters: list[Tensor], transposed: bool) -> None:
    source = source.T if transposed else source
    begin = 0
    for parameter in parameters:
        parameter.copy_(source[begin : begin + parameter.shape[0]])
        begin += parameter.shape[0]


def _on_meta(config: ModelConfig, task: TaskConfig | None) -> LanguageModel | TaskModel:
    with torch.device("meta"):
        return LanguageModel(config) if task is None else TaskModel(config, task)


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def _with_labels(task: TaskConfig, labels: int | list[str] | None) -> TaskConfig:
    if labels is None:
        return task
    if isinstance(labels, int):
        return replace(task, num_labels=labels, labels=None)
    return replace(task, num_labels=len(labels), labels=list(labels))
