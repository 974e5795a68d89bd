"""Matching the tensors of a checkpoint with parameters: all that does not fit is reported in one message."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ingot.model.finetuning.task_model import TaskModel
from ingot.model.huggingface.files import FLOATS, Weights, shorten
from ingot.model.huggingface.mapping.family import Family
from ingot.model.huggingface.mapping.key_map import BODY, MappedTensor, is_named, map_tensors
from ingot.model.transformer import LanguageModel


class CanonicalWeights:
    """Weights under the names of the key maps."""

    def __init__(self, weights: Weights, file_names: dict[str, str]):
        self._weights, self._file_names = weights, file_names

    def __contains__(self, name: str) -> bool:
        return name in self._file_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_names)

    def __len__(self) -> int:
        return len(self._file_names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shapes[self._file_names[name]]

    def dtype(self, name: str) -> str:
        return self._weights.dtypes[self._file_names[name]]

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._file_names[name])


def canonical(weights: Weights, family: Family, folder: Path) -> CanonicalWeights:
    """Renames weights as in the key maps: `@` for the prefix of the body, no names of TensorFlow, no buffers of old
    files."""
    prefixes = {family.prefix, *(head.prefix for head in family.heads.values() if head.prefix)}
    rows = family.body + tuple(row for head in family.heads.values() for row in head.rows)
    file_names: dict[str, str] = {}
    for name in weights.shapes:
        new = re.sub(r"\bLayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"\bLayerNorm\.beta$", "LayerNorm.bias", name))
        prefix = next((each for each in prefixes if new.startswith(each)), None)
        if prefix is not None:
            new = BODY + new.removeprefix(prefix)
        elif is_named(rows, BODY + new) or re.fullmatch(family.buffers, BODY + new):
            new = BODY + new
        if re.fullmatch(family.buffers, new):
            continue
        if new in file_names:
            raise ValueError(f"{folder} has {file_names[new]} and {name}, which are the same parameter; remove one")
        file_names[new] = name
    return CanonicalWeights(weights, file_names)


def match(
    model: LanguageModel | TaskModel,
    family: Family,
    kind: str,
    weights: CanonicalWeights,
    folder: Path,
    new: set[str],
    new_head: bool,
    kind_is_given: bool,
) -> tuple[list[MappedTensor], set[str]]:
    """The tensors with their parameters, and the parameters without a tensor.

    Raises:
        ValueError: tensors are missing, unexpected or of another shape; the message lists all of them.
    """
    tied, shapes = model.config.tie_word_embeddings, shapes_of(model)
    plain = lambda name: name.replace(BODY, family.prefix_of(kind))  # noqa: E731
    tensors, unknown = map_tensors(
        family.rows(kind), {name: shape for name, shape in shapes.items() if name not in new}
    )
    assert not unknown, f"{family.model_type} has no rows for {unknown}"
    found: list[MappedTensor] = []
    missing: list[str] = []
    wrong: list[str] = []
    seen: set[str] = set()
    lacks_head = False
    for tensor in tensors:
        twin = tensor.twin
        if twin is not None and twin in weights:
            seen |= {tensor.name, twin}
            if tensor.name not in weights or not tied:  # in an untied model transformers uses the second name
                tensor = replace(tensor, name=twin)
            elif not torch.equal(weights.read(tensor.name), weights.read(twin)):
                wrong.append(f"{plain(tensor.name)} and {twin} are one parameter, but differ in the file")
        if tensor.name not in weights:
            if new_head and all(name.startswith(("head.", "pair_head.")) for name in tensor.parts):
                new.update(tensor.parts)
            else:
                missing.append(plain(tensor.name))
                lacks_head |= is_named(family.heads[kind].rows, tensor.name)
            continue
        seen.add(tensor.name)
        if weights.shape(tensor.name) != tensor.shape:
            wrong.append(
                f"{plain(tensor.name)} is {list(weights.shape(tensor.name))} in the file, not {list(tensor.shape)}"
            )
        if weights.dtype(tensor.name) not in FLOATS:
            wrong.append(
                f"{plain(tensor.name)} has dtype {weights.dtype(tensor.name)}, which is not a floating-point type"
            )
        found.append(tensor)
    wrong += _problem_of_tied_head(model, family, kind, weights, seen)

    lacks_head = lacks_head and not new_head
    warn = not kind_is_given and not new_head
    _raise_problems(family, kind, weights, folder, missing, wrong, seen, lacks_head, warn)
    return found, new


def _raise_problems(
    family: Family,
    kind: str,
    weights: CanonicalWeights,
    folder: Path,
    missing: list[str],
    wrong: list[str],
    seen: set[str],
    lacks_head: bool,
    warn: bool,
) -> None:
    """Raises all problems, also tensors that are not used. Tensors of other heads of the family only give a warning."""
    prefix, architecture = family.prefix_of(kind), family.heads[kind].architecture
    others = tuple(row for head in family.heads.values() for row in head.rows)
    unused = {name: is_named(others, name) for name in weights if name not in seen}
    other_heads, unexpected = (
        sorted(name.replace(BODY, prefix) for name, of_head in unused.items() if of_head == wanted)
        for wanted in (True, False)
    )
    problems = [f"missing: {shorten(sorted(missing))}"] if missing else []
    problems += [f"unexpected: {shorten(unexpected)}"] if unexpected else []
    problems += [f"wrong: {shorten(wrong)}"] if wrong else []
    problems += ["set new_head to make the missing parameters of the head"] if lacks_head else []
    if problems:
        raise ValueError(f"the weights in {folder} do not fit a {architecture}: " + "; ".join(problems))
    if other_heads and warn:
        warnings.warn(f"{folder} has more than a {architecture}: {shorten(other_heads)}", stacklevel=4)


def _problem_of_tied_head(
    model: LanguageModel | TaskModel, family: Family, kind: str, weights: CanonicalWeights, seen: set[str]
) -> list[str]:
    """A tied head may be in the file, but must equal the embedding: libraries differ in which of the two they use."""
    if not isinstance(model, LanguageModel) or not model.config.tie_word_embeddings:
        return []
    shape = {"head.weight": tuple(model.head.weight.shape)}
    (head,), _ = map_tensors(family.rows(kind), shape)
    (table,), _ = map_tensors(family.body, {"embedding.token.weight": shape["head.weight"]})
    if head.name not in weights:
        return []
    seen.add(head.name)
    if table.name not in weights or torch.equal(weights.read(head.name), weights.read(table.name)):
        return []
    return [f"{head.name} differs from the embedding, but tie_word_embeddings is true; set it to false to use both"]


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
