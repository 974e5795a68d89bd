"""What makes a model one of a family, as values of ModelConfig: all but its size.

The file imports nothing, so that a command line can read it fast. A test compares it with the families.
"""

from typing import Any

_GPT2 = {
    "causal": True,
    "positions": "learned",
    "norm": "layernorm",
    "norm_placement": "pre",
    "norm_eps": 1e-5,
    "activation": "gelu_tanh",
    "gated_mlp": False,
    "bias": True,
    "tie_word_embeddings": True,
    "residual_scaled_init": True,
}
_LLAMA = {
    "causal": True,
    "positions": "rotary",
    "norm": "rmsnorm",
    "norm_placement": "pre",
    "norm_eps": 1e-6,
    "activation": "silu",
    "gated_mlp": True,
    "bias": False,
    "tie_word_embeddings": False,
    "residual_scaled_init": False,
}
_BERT = {
    "causal": False,
    "positions": "learned",
    "norm": "layernorm",
    "norm_placement": "post",
    "norm_eps": 1e-12,
    "activation": "gelu",
    "gated_mlp": False,
    "bias": True,
    "type_vocab_size": 2,
    "embedding_norm": True,
    "tie_word_embeddings": True,
    "head_transform": True,
    "head_bias": True,
    "residual_scaled_init": False,
}
_MODERNBERT = {
    "causal": False,
    "positions": "rotary",
    "rope_theta": 160_000.0,
    "local_rope_theta": 10_000.0,
    "layer_pattern": "GLL",
    "sliding_window": 64,
    "norm": "layernorm",
    "norm_placement": "pre",
    "norm_eps": 1e-5,
    "activation": "gelu",
    "gated_mlp": True,
    "bias": False,
    "first_norm": False,
    "embedding_norm": True,
    "tie_word_embeddings": True,
    "head_transform": True,
    "head_bias": True,
    "residual_scaled_init": True,
}
PRESETS: dict[str, dict[str, Any]] = {
    "gpt2": _GPT2,
    "llama": _LLAMA,
    "qwen2": {**_LLAMA, "qkv_bias": True},
    "qwen3": {**_LLAMA, "qk_norm": True},
    "bert": _BERT,
    "roberta": {**_BERT, "norm_eps": 1e-5, "type_vocab_size": 1, "position_offset": 2},
    "modernbert": _MODERNBERT,
}
