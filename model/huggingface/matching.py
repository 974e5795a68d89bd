"""Which tensors of a checkpoint are which parameters of ours, and all that does not fit, in one message."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ingot.model.huggingface.files import FLOATS, Weights, some
from ingot.model.huggingface.mapping.family import LANGUAGE_KINDS, Family
from ingot.model.huggingface.mapping.key_map import BODY, Placed, arrange, is_of


class Spelled:
    """Weights under the names that the key maps have."""

    def __init__(self, weights: Weights, spellings: dict[str, str]):
        self._weights, self._spellings = weights, spellings

    def __contains__(self, name: str) -> bool:
        return name in self._spellings

    def __iter__(self) -> Iterator[str]:
        return iter(self._spellings)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._weights.shapes[self._spellings[name]]

    def type(self, name: str) -> str:
        return self._weights.types[self._spellings[name]]

    def read(self, name: str) -> Tensor:
        return self._weights.read(self._spellings[name])


def spelled(weights: Weights, family: Family, folder: Path) -> Spelled:
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
    return Spelled(weights, spellings)


def match(
    model: nn.Module,
    family: Family,
    kind: str,
    weights: Spelled,
    folder: Path,
    new: set[str],
    new_head: bool,
    named: bool,
) -> tuple[list[Placed], set[str]]:
    """Which tensor goes where, and the parameters that none goes to.

    Raises:
        ValueError: all that is missing, unexpected or of another shape.
    """
    config, shapes = model.config, shapes_of(model)
    plain = lambda name: name.replace(BODY, family.prefix_of(kind))  # noqa: E731
    placed, unknown = arrange(family.rows(kind), {name: shape for name, shape in shapes.items() if name not in new})
    assert not unknown, f"{family.model_type} has no rows for {unknown}"
    found, missing, wrong, seen, lacks_head = [], [], [], set(), False
    for each in placed:
        if each.twin is not None and each.twin in weights:
            seen |= {each.name, each.twin}
            if (
                each.name not in weights or not config.tie_word_embeddings
            ):  # untied, the second spelling is the one in use
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

    _refuse(
        family,
        kind,
        weights,
        folder,
        missing,
        wrong,
        seen,
        lacks_head and not new_head,
        warn=not named and not new_head,
    )
    return found, new


def _refuse(
    family: Family,
    kind: str,
    weights: Spelled,
    folder: Path,
    missing: list[str],
    wrong: list[str],
    seen: set[str],
    lacks_head: bool,
    warn: bool,
) -> None:
    """Raises what is wrong, the tensors included that nothing has asked for; those of other heads may be there."""
    prefix, architecture = family.prefix_of(kind), family.heads[kind].architecture
    others = tuple(row for head in family.heads.values() for row in head.rows)
    left_out = {name: is_of(others, name) for name in weights if name not in seen}
    known, unexpected = (
        sorted(name.replace(BODY, prefix) for name, is_known in left_out.items() if is_known == wanted)
        for wanted in (True, False)
    )
    problems = [f"missing: {some(sorted(missing))}"] if missing else []
    problems += [f"unexpected: {some(unexpected)}"] if unexpected else []
    problems += [f"wrong: {some(wrong)}"] if wrong else []
    problems += ["new_head makes what a file lacks of a head"] if lacks_head else []
    if problems:
        raise ValueError(f"the weights in {folder} do not fit a {architecture}: " + "; ".join(problems))
    if known and warn:
        warnings.warn(f"{folder} holds more than a {architecture}: {some(known)}", stacklevel=4)


def _problem_of_tie(model: nn.Module, family: Family, kind: str, weights: Spelled, seen: set[str]) -> list[str]:
    """A tied head may be in the file, but must be the embedding: readers differ in which of the two they would take."""
    if kind not in LANGUAGE_KINDS or not model.config.tie_word_embeddings:
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


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
