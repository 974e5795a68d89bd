"""The models that are measured."""

from typing import Any


def shape_of(kind: str, tiny: bool) -> tuple[Any, int, int]:
    """Configuration, sequences of a micro-batch, and their length."""
    from ingot.model.config import ModelConfig

    gpt2 = {"vocab_size": 50257, "num_hidden_layers": 12, "num_attention_heads": 12, "hidden_size": 768}
    llama = {"vocab_size": 32768, "num_hidden_layers": 20, "num_attention_heads": 16, "hidden_size": 2048}
    llama |= {"num_key_value_heads": 8, "intermediate_size": 5632, "max_position_embeddings": 2048}
    llama |= {"positions": "rotary", "norm": "rmsnorm", "activation": "silu", "gated_mlp": True, "bias": False}
    llama |= {"tie_word_embeddings": False}
    bert = {**gpt2, "vocab_size": 30522, "max_position_embeddings": 512, "causal": False, "norm_placement": "post"}
    bert |= {"norm_eps": 1e-12, "activation": "gelu", "type_vocab_size": 2, "embedding_norm": True}
    bert |= {"head_transform": True, "head_bias": True}
    values, rows, length = {"gpt2": (gpt2, 32, 1024), "llama": (llama, 8, 2048), "bert": (bert, 64, 512)}[kind]
    if tiny:
        values = {**values, "vocab_size": 97, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32}
        values |= {"intermediate_size": 64, "max_position_embeddings": 32}
        values |= {"num_key_value_heads": 1} if "num_key_value_heads" in values else {}
        rows, length = 2, 32
    return ModelConfig(**values), rows, length
