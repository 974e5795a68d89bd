"""Llama (arXiv 2302.13971 and after): RMSNorm, rotary positions, SwiGLU, grouped-query attention. Qwen has the same
tensors."""

from collections.abc import Mapping
from typing import Any

from ingot.model.config import ModelConfig
from ingot.model.huggingface.mapping.family import Family, Head
from ingot.model.huggingface.mapping.key_map import Row
from ingot.model.huggingface.mapping.rope import read_rope, write_rope
from ingot.model.huggingface.mapping.settings import ACTIVATIONS, Key, Settings

BODY = (
    Row("embedding.token", "@embed_tokens"),
    Row("blocks.*.attention_norm", "@layers.*.input_layernorm"),
    Row("blocks.*.attention.query", "@layers.*.self_attn.q_proj"),
    Row("blocks.*.attention.key", "@layers.*.self_attn.k_proj"),
    Row("blocks.*.attention.value", "@layers.*.self_attn.v_proj"),
    Row("blocks.*.attention.output", "@layers.*.self_attn.o_proj"),
    Row("blocks.*.mlp_norm", "@layers.*.post_attention_layernorm"),
    Row("blocks.*.mlp.gate", "@layers.*.mlp.gate_proj"),
    Row("blocks.*.mlp.up", "@layers.*.mlp.up_proj"),
    Row("blocks.*.mlp.down", "@layers.*.mlp.down_proj"),
    Row("final_norm", "@norm"),
)
KEYS = (
    Key("vocab_size", "vocab_size"),
    Key("hidden_size", "hidden_size"),
    Key("intermediate_size", "intermediate_size"),
    Key("num_hidden_layers", "num_hidden_layers"),
    Key("num_attention_heads", "num_attention_heads"),
    Key("num_key_value_heads", "num_key_value_heads", None),
    Key("max_position_embeddings", "max_position_embeddings"),
    Key("hidden_act", "activation", "silu", {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh", **ACTIVATIONS}),
    Key("rms_norm_eps", "norm_eps", 1e-6),
    Key("initializer_range", "initializer_range", 0.02),
    Key("attention_dropout", "attention_dropout", 0.0),
    Key("tie_word_embeddings", "tie_word_embeddings", False),
)
IMPLIED = {
    "causal": True,
    "positions": "rotary",
    "norm": "rmsnorm",
    "gated_mlp": True,
    "bias": False,
    "residual_scaled_init": False,
}
BUFFERS = r"@layers\.\d+\.self_attn\.rotary_emb\.inv_freq"


def heads_of(name: str) -> Mapping[str, Head]:
    """The kinds of models. The body of the question answering model has an older name."""
    score = (Row("head.classifier", "score"),)
    return {
        "language": Head(f"{name}ForCausalLM", (Row("head", "lm_head"),)),
        "sequence": Head(
            f"{name}ForSequenceClassification", score, {"pooling": "last", "layer": "none", "bias": False}
        ),
        "token": Head(f"{name}ForTokenClassification", score, {"layer": "none"}),
        "span": Head(
            f"{name}ForQuestionAnswering",
            (Row("head.classifier", "qa_outputs"),),
            {"layer": "none"},
            prefix="transformer.",
        ),
        "features": Head(f"{name}Model", (), {"layer": "none"}),
    }


def _read(settings: Settings) -> dict[str, Any]:
    attention_bias = bool(settings.get("attention_bias", False))
    return {
        "head_dim": settings.get("head_dim"),
        "qkv_bias": attention_bias,
        "output_bias": attention_bias,
        "mlp_bias": bool(settings.get("mlp_bias", False)),
        **read_rope(settings),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    if config.hidden_size % config.num_attention_heads:  # LlamaConfig refuses it, even with a head_dim
        raise ValueError(
            f"hidden_size {config.hidden_size} is not a multiple of num_attention_heads {config.num_attention_heads}"
        )
    return {
        "head_dim": config.head_size,
        "attention_bias": config.has_bias("qkv"),
        "mlp_bias": config.has_bias("mlp"),
        "pretraining_tp": 1,
        "use_cache": True,
        **write_rope(config),
    }


FAMILY = Family(
    model_type="llama",
    prefix="model.",
    body=BODY,
    heads=heads_of("Llama"),
    keys=KEYS,
    implied=IMPLIED,
    read=_read,
    write=_write,
    buffers=BUFFERS,
)
