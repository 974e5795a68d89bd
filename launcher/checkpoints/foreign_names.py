"""Which tensors of another system's checkpoint are which parameters of Ingot: a list of `ForeignTensor`s."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ingot.model.config import ModelConfig
from ingot.model.huggingface.families.registry import FAMILIES
from ingot.model.huggingface.mapping.family import Family, computing_fields
from ingot.model.huggingface.mapping.key_map import BODY, MappedTensor, Row, map_tensors
from ingot.model.transformer import LanguageModel

TORCHTITAN = "torchtitan"
FAMILY_NAMES = (*FAMILIES, TORCHTITAN)
Shapes = dict[str, tuple[int, ...]]

_WRAPPERS = re.compile(r"\b(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")

# torchtitan's Llama, with the names of Meta's own code.
_TORCHTITAN_ROWS = (
    Row("embedding.token", "tok_embeddings"),
    Row("blocks.*.attention_norm", "layers.*.attention_norm"),
    Row("blocks.*.attention.query", "layers.*.attention.wq"),
    Row("blocks.*.attention.key", "layers.*.attention.wk"),
    Row("blocks.*.attention.value", "layers.*.attention.wv"),
    Row("blocks.*.attention.output", "layers.*.attention.wo"),
    Row("blocks.*.mlp_norm", "layers.*.ffn_norm"),
    Row("blocks.*.mlp.gate", "layers.*.feed_forward.w1"),
    Row("blocks.*.mlp.up", "layers.*.feed_forward.w3"),
    Row("blocks.*.mlp.down", "layers.*.feed_forward.w2"),
    Row("final_norm", "norm"),
    Row("head", "output"),
)


@dataclass(frozen=True)
class ForeignTensor:
    """A tensor of another system, and the parameters that it holds.

    Attributes:
        names: its name, and others that some versions use.
        parts: parameters of Ingot, which it holds one after another along the outputs.
        shape: in the source.
        transposed: its matrix is (in, out).
        interleaved: number of heads if it makes queries or keys whose rotated pairs are neighbours, else 0.
    """

    names: tuple[str, ...]
    parts: tuple[str, ...]
    shape: tuple[int, ...]
    transposed: bool = False
    interleaved: int = 0

    def divide(self, value: Tensor, shapes: Shapes) -> Iterator[tuple[str, Tensor]]:
        """The parameters' part of the tensor, or of its moment; each element only changes its place."""
        if self.interleaved:
            pairs = value.unflatten(0, (self.interleaved, -1, 2))
            value = pairs.transpose(1, 2).reshape(value.shape)
        value = value.T if self.transposed else value
        begin = 0
        for name in self.parts:
            rows = shapes[name][0]
            yield name, value[begin : begin + rows].contiguous()
            begin += rows


@dataclass(frozen=True)
class ForeignModel:
    """The tensors of a model, and which other names a source may have for them or for what is no parameter.

    Attributes:
        shapes: of Ingot's parameters.
        family, kind: for the names of transformers, else None.
    """

    tensors: list[ForeignTensor]
    shapes: Shapes
    may_have: Callable[[str], bool] = field(default=lambda name: False)
    family: Family | None = None
    kind: str = "language"


def foreign_model(config: ModelConfig, family: str | None) -> ForeignModel:
    """The tensors of a model in a source with Ingot's own names (None), or with those of a family.

    Raises:
        ValueError: there is no such family, or it cannot express the model.
    """
    with torch.device("meta"):
        model = LanguageModel(config)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    if family is None:
        others = {name for name, _ in model.named_parameters(remove_duplicate=False)} - shapes.keys()
        tensors = [ForeignTensor((name,), (name,), shape) for name, shape in shapes.items()]
        return ForeignModel(tensors, shapes, others.__contains__)
    if family == TORCHTITAN:
        return _torchtitan(config, shapes)
    if family not in FAMILIES:
        raise ValueError(f"family is {family!r}; choose one of {', '.join(FAMILY_NAMES)}")
    chosen, kind = FAMILIES[family], "pretraining" if config.pair_head else "language"
    if problems := chosen.differences(config, kind, None):
        raise ValueError(f"the model of the configuration is none of family {family}: {', '.join(problems[:6])}")
    plain = lambda name: name.replace(BODY, chosen.prefix_of(kind))  # noqa: E731
    mapped, unknown = map_tensors(chosen.rows(kind), shapes)
    assert not unknown, f"{family} has no rows for {unknown}"
    head, _ = map_tensors(chosen.rows(kind), {"head.weight": shapes["embedding.token.weight"]})
    tied = {plain(each.name) for each in head}

    def may_have(name: str) -> bool:
        return name in tied or bool(re.fullmatch(chosen.buffers, name.replace(chosen.prefix_of(kind), BODY, 1)))

    tensors = [_foreign(each, (plain(each.name), *([each.twin] if each.twin else []))) for each in mapped]
    return ForeignModel(tensors, shapes, may_have, chosen, kind)


def _foreign(mapped: MappedTensor, names: tuple[str, ...]) -> ForeignTensor:
    return ForeignTensor(names, tuple(mapped.parts), mapped.shape, mapped.transposed)


def _torchtitan(config: ModelConfig, shapes: Shapes) -> ForeignModel:
    problems = FAMILIES["llama"].differences(config, "language", None)
    mapped, unknown = map_tensors(_TORCHTITAN_ROWS, shapes)
    if problems or unknown:
        raise ValueError(f"the model of the configuration is no Llama: {', '.join((problems or unknown)[:6])}")
    heads = {"query": config.num_attention_heads, "key": config.kv_heads}
    tensors = []
    for each in mapped:
        foreign = _foreign(each, (each.name,))
        projection = each.parts[0].split(".")[-2]
        tensors.append(replace(foreign, interleaved=heads.get(projection, 0)))
    return ForeignModel(tensors, shapes, lambda name: name in ("freqs_cis", "output.weight", "rope.cache"))


def plain_name(name: str) -> str:
    """A name without what FSDP, activation checkpointing and torch.compile put into it."""
    return _WRAPPERS.sub("", name)


def check_config(config: ModelConfig, model: ForeignModel, values: dict[str, Any], where: str) -> None:
    """Compares the configuration with the config.json of the source: shapes do not show the base of the rotation.

    Raises:
        ValueError: they compute something else. The message lists what.
    """
    if model.family is None:
        return
    theirs = computing_fields(model.family.read_model(values, model.kind), model.kind, None)
    ours = computing_fields(config, model.kind, None)
    if odd := [f"{n} is {theirs.get(n)!r} there and {ours[n]!r} here" for n in ours if theirs.get(n) != ours[n]]:
        raise ValueError(f"{where} is of another model than the configuration: {'; '.join(odd[:6])}")
