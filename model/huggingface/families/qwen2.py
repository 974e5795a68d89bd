"""Qwen2 and Qwen2.5 (arXiv 2407.10671): Llama with biases of query, key and value, and sliding windows."""

from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.huggingface.families import llama
from ingot.model.huggingface.mapping.family import Family
from ingot.model.huggingface.mapping.layer_types import sliding_pattern, written_sliding
from ingot.model.huggingface.mapping.rope import read_rope, write_rope
from ingot.model.huggingface.mapping.settings import Settings


def _read(settings: Settings) -> dict[str, Any]:
    return {"head_dim": settings.get("head_dim"), **sliding_pattern(settings), **read_rope(settings)}


def _write(config: ModelConfig) -> dict[str, Any]:
    # Qwen2Config does not define head_dim, but transformers uses it if it is there.
    head = {} if config.head_size * config.num_attention_heads == config.hidden_size else {"head_dim": config.head_size}
    return {**head, "use_cache": True, **written_sliding(config), **write_rope(config)}


FAMILY = Family(
    model_type="qwen2",
    prefix="model.",
    body=llama.BODY,
    heads=llama.heads_of("Qwen2"),
    keys=llama.KEYS,
    implied={**llama.IMPLIED, "qkv_bias": True},
    read=_read,
    write=_write,
    buffers=llama.BUFFERS,
)
