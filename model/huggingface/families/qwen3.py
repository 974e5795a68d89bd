"""Qwen3 (arXiv 2505.09388): Llama with normalised queries and keys, an explicit head_dim, and sliding windows."""

from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.huggingface.families import llama
from ingot.model.huggingface.mapping.family import Family
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.layer_types import sliding_pattern, written_sliding
from ingot.model.huggingface.mapping.rope import read_rope, write_rope
from ingot.model.huggingface.mapping.settings import Settings

BODY = (
    *llama.BODY,
    Row("blocks.*.attention.query_norm", "@layers.*.self_attn.q_norm"),
    Row("blocks.*.attention.key_norm", "@layers.*.self_attn.k_norm"),
)


def _read(settings: Settings) -> dict[str, Any]:
    bias = bool(settings.get("attention_bias", False))
    fields = {"head_dim": settings.get("head_dim", 128), "qkv_bias": bias, "output_bias": bias}
    return {**fields, **sliding_pattern(settings), **read_rope(settings)}


def _write(config: ModelConfig) -> dict[str, Any]:
    own = {"head_dim": config.head_size, "attention_bias": config.has_bias("qkv"), "use_cache": True}
    return {**own, **written_sliding(config), **write_rope(config)}


FAMILY = Family(
    model_type="qwen3",
    prefix="model.",
    body=BODY,
    heads=llama.heads_of("Qwen3"),
    keys=llama.KEYS,
    implied={**llama.IMPLIED, "qk_norm": True},
    read=_read,
    write=_write,
    buffers=llama.BUFFERS,
)
