"""Mistakes that load without a word: for each, the tolerance of the comparisons catches it."""

from collections import deque
from dataclasses import replace

import pytest
import torch
from torch import nn

from ingot.model import transformer
from ingot.model.huggingface.families.registry import FAMILIES
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.rotary import rotate
from tests.model.huggingface_models import LENGTH, TOLERANCE, agree, ids_of, imported, run_ours, run_theirs, theirs


def setting(**changes):
    """A fault of the settings: a model of the same weights with other ones."""

    def fault(mine):
        changed = type(mine)(replace(mine.config, **changes)).eval()
        changed.load_state_dict(mine.state_dict())
        return changed

    return fault


def of_parts(change):
    """A fault of the model's parts, made by a function that changes them in place."""

    def fault(mine):
        with torch.no_grad():
            change(mine)
        return mine

    return fault


def interleave(mine):
    """Queries and keys as Meta keeps them: pairs beside each other."""
    size = mine.config.head_size
    for block in mine.blocks:
        for projection in (block.attention.query, block.attention.key):
            heads = projection.weight.unflatten(0, (-1, 2, size // 2))
            projection.weight.copy_(heads.transpose(1, 2).flatten(0, 2))


def repeat_instead_of_interleave(mine):
    """Query head h reads key head h % K instead of h // (H / K)."""
    size = mine.config.head_size
    for block in mine.blocks:
        heads = block.attention.query.weight.unflatten(0, (-1, size))
        block.attention.query.weight.copy_(heads[[0, 2, 1, 3]].flatten(0, 1))
        columns = block.attention.output.weight.unflatten(1, (-1, size))
        block.attention.output.weight.copy_(columns[:, [0, 2, 1, 3]].flatten(1, 2))


def transpose_output(mine):
    for block in mine.blocks:
        block.attention.output.weight.copy_(block.attention.output.weight.T.clone())


def norm_first(mine):
    for block in mine.blocks:
        block.norm_first = True


def norm_before_first_layer(mine):
    mine.blocks[0].attention_norm = nn.LayerNorm(mine.config.hidden_size, bias=False)


def without_query_and_key_norm(mine):
    for block in mine.blocks:
        block.attention.query_norm = block.attention.key_norm = None


def without(path: str):
    def change(mine):
        owner, _, name = path.rpartition(".")
        setattr(mine.get_submodule(owner), name, None)

    return change


def activation_of_transform(mine):
    mine.head.transform.activation = nn.Identity()


def widen(by: int):
    def change(mine):
        mine.config.sliding_window += by

    return change


def offset(mine):
    mine.embedding.position_offset = 0


FAULTS = {
    "gpt2: erf GELU": ("gpt2", setting(activation="gelu")),
    "gpt2: epsilon": ("gpt2", setting(norm_eps=1e-12)),
    "gpt2: square matrix transposed": ("gpt2", of_parts(transpose_output)),
    "llama: interleaved pairs": ("llama", of_parts(interleave)),
    "llama: order of repeated heads": ("llama", of_parts(repeat_instead_of_interleave)),
    "llama: epsilon": ("llama", setting(norm_eps=1e-6)),
    "llama: theta": ("llama", setting(rope_theta=505.0)),
    "qwen2: epsilon": ("qwen2", setting(norm_eps=1e-5)),
    "qwen2: window counts the token": ("qwen2", of_parts(widen(1))),
    "qwen2: window too small": ("qwen2", of_parts(widen(-1))),
    "qwen2: which layers are local": ("qwen2", setting(layer_pattern="LLGG")),
    "qwen3: window counts the token": ("qwen3", of_parts(widen(1))),
    "qwen3: no norm of queries and keys": ("qwen3", of_parts(without_query_and_key_norm)),
    "bert: tanh GELU": ("bert", setting(activation="gelu_tanh")),
    "bert: epsilon": ("bert", setting(norm_eps=1e-5)),
    "bert: norm before the branch": ("bert", of_parts(norm_first)),
    "bert: no norm of embeddings": ("bert", of_parts(without("embedding.norm"))),
    "bert: no token types": ("bert", of_parts(without("embedding.token_type"))),
    "bert: no transform": ("bert", of_parts(without("head.transform"))),
    "bert: transform without activation": ("bert", of_parts(activation_of_transform)),
    "bert: no decoder bias": ("bert", of_parts(without("head.bias"))),
    "roberta: positions from 0": ("roberta", of_parts(offset)),
    "roberta: epsilon": ("roberta", setting(norm_eps=1e-12)),
    "roberta: no decoder bias": ("roberta", of_parts(without("head.bias"))),
    "modernbert: window too large": ("modernbert", of_parts(widen(1))),
    "modernbert: window too small": ("modernbert", of_parts(widen(-1))),
    "modernbert: norm before the first layer": ("modernbert", of_parts(norm_before_first_layer)),
    "modernbert: one base for all layers": ("modernbert", setting(local_rope_theta=None)),
    "modernbert: which layers are global": ("modernbert", setting(layer_pattern="LLG")),
    "modernbert: no decoder bias": ("modernbert", of_parts(without("head.bias"))),
    "modernbert: no transform": ("modernbert", of_parts(without("head.transform"))),
    "modernbert: tanh GELU": ("modernbert", setting(activation="gelu_tanh")),
    "modernbert: epsilon": ("modernbert", setting(norm_eps=1e-6)),
}


@pytest.mark.parametrize("name", FAULTS)
def test_the_tolerance_catches_a_fault(name, tmp_path):
    family, fault = FAULTS[name]
    other = theirs(family)
    mine = imported(other, tmp_path)
    assert agree(mine, other, family, "plain") <= TOLERANCE, "the comparison must stand before the fault"
    assert agree(fault(mine), other, family, "plain") > 2 * TOLERANCE


QKV = tuple(f"blocks.*.attention.{name}" for name in ("query", "key", "value"))
KEY_MAPS = {
    "square matrix not transposed": ("gpt2", "@h.*.attn.c_proj", Row("blocks.*.attention.output", "@h.*.attn.c_proj")),
    "order of fused projections": ("gpt2", "@h.*.attn.c_attn", Row(QKV[::-1], "@h.*.attn.c_attn", transposed=True)),
    "order of modernbert's projections": ("modernbert", "@layers.*.attn.Wqkv", Row(QKV[::-1], "@layers.*.attn.Wqkv")),
    "gate is the second half": (
        "modernbert",
        "@layers.*.mlp.Wi",
        Row(("blocks.*.mlp.up", "blocks.*.mlp.gate"), "@layers.*.mlp.Wi"),
    ),
}


@pytest.mark.parametrize("name", KEY_MAPS)
def test_the_tolerance_catches_a_wrong_key_map(name, monkeypatch, tmp_path):
    family, old, new = KEY_MAPS[name]
    known = FAMILIES[family]
    body = tuple(new if row.theirs == old else row for row in known.body)
    assert body != known.body
    monkeypatch.setitem(FAMILIES, family, replace(known, body=body))
    other = theirs(family)
    mine = imported(other, tmp_path)  # loads: names and shapes are all right
    assert agree(mine, other, family, "plain") > 2 * TOLERANCE


def test_the_tolerance_catches_a_norm_behind_the_rotation(monkeypatch, tmp_path):
    other = theirs("qwen3")
    mine = imported(other, tmp_path)
    waiting: deque[nn.Module] = deque()

    class Later(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.norm = norm

        def forward(self, x):
            waiting.append(self.norm)
            return x

    for block in mine.blocks:
        block.attention.query_norm, block.attention.key_norm = (
            Later(block.attention.query_norm),
            Later(block.attention.key_norm),
        )
    monkeypatch.setattr(transformer, "rotate", lambda x, rotation: waiting.popleft()(rotate(x, rotation)))
    assert agree(mine, other, "qwen3", "plain") > 2 * TOLERANCE
    assert not waiting


def test_the_tolerance_catches_a_rotation_the_other_way(monkeypatch, tmp_path):
    """Harmless inside of a model, as only the difference of positions matters there, but not once it is exported."""
    other = theirs("llama")
    mine = imported(other, tmp_path)
    monkeypatch.setattr(transformer, "rotate", lambda x, rotation: rotate(x, (rotation[0], -rotation[1])))
    assert agree(mine, other, "llama", "plain") > 2 * TOLERANCE


def test_interleaved_pairs_are_right_at_the_first_position_only(tmp_path):
    other = theirs("llama")
    mine = imported(other, tmp_path)
    interleave_ = of_parts(interleave)
    ids_BT = ids_of(2, LENGTH)
    off = (run_ours(interleave_(mine), ids_BT) - run_theirs(other, ids_BT)).abs().amax((0, 2))
    assert off[0] <= TOLERANCE
    assert off[16:].min() > 100 * TOLERANCE
