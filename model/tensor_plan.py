"""What each module becomes when its layers are shared by several tensor ranks, as plain data.

Attention is shared by heads, the MLP by its hidden size, embedding and head by the vocabulary. In between, activations
lie cut along the sequence; `parallel/tensor_parallel/layers.py` says what the roles mean.
"""

from __future__ import annotations

from ingot.model.config import ModelConfig

Role = tuple[str, int]  # a role and the number of units that its outputs (of rows: inputs) consist of, 0 for none


def tensor_plan(config: ModelConfig) -> list[tuple[str, Role]]:
    """Patterns of module names, with `*` for a layer's number, and the roles of the modules they match, in order.

    Heads of tasks and of pairs are not listed: they work on whole sequences, on each rank alike.
    """
    last = f"blocks.{config.num_hidden_layers - 1}" if config.norm_placement == "post" else "final_norm"
    return [
        ("embedding.token", ("vocabulary", 0)),
        ("embedding.dropout", ("split", 0)),
        ("blocks.*.attention_norm", ("norm", 0)),
        ("blocks.*.attention", ("gather", 0)),
        ("blocks.*.attention.query", ("column", config.num_attention_heads)),
        ("blocks.*.attention.key", ("column", config.kv_heads)),
        ("blocks.*.attention.value", ("column", config.kv_heads)),
        ("blocks.*.attention.query_norm", ("norm", 0)),
        ("blocks.*.attention.key_norm", ("norm", 0)),
        ("blocks.*.attention.output", ("row", config.num_attention_heads)),
        ("blocks.*.mlp_norm", ("norm", 0)),
        ("blocks.*.mlp", ("gather", 0)),
        ("blocks.*.mlp.gate", ("column", config.mlp_size)),
        ("blocks.*.mlp.up", ("column", config.mlp_size)),
        ("blocks.*.mlp.down", ("row", config.mlp_size)),
        ("final_norm", ("norm", 0)),
        (last, ("join", 0)),
        ("head", ("vocabulary_head", 0)),
        ("pair_head.dropout", ("same_dropout", 0)),
        ("head.dropout", ("same_dropout", 0)),
    ]


def tensor_problems(config: ModelConfig, tensor: int, sequence_length: int) -> list[str]:
    """Why a model cannot be shared by `tensor` ranks, each with its numbers; empty if it can."""
    problems = []
    if config.num_attention_heads % tensor:
        problems.append(f"model.num_attention_heads {config.num_attention_heads} is no multiple of it")
    if config.kv_heads % tensor and tensor % config.kv_heads:
        problems.append(f"model.num_key_value_heads {config.kv_heads} neither divides it nor is a multiple of it")
    if config.mlp_size % tensor:
        problems.append(f"the MLP's hidden size {config.mlp_size} (model.intermediate_size) is no multiple of it")
    if sequence_length % tensor:
        problems.append(f"data.sequence_length {sequence_length} is no multiple of it")
    if (tensor - 1) * -(-config.vocab_size // tensor) >= config.vocab_size:
        problems.append(f"model.vocab_size {config.vocab_size} is too small to be cut")
    return [f"parallel.tensor is {tensor}, and {problem}" for problem in problems]
