"""The tensor-parallel plan: the role of each module when the layers are split over tensor ranks, as plain data.

Attention is split by heads, the MLP by its intermediate size, embedding and head by the vocabulary. Between them the
activations are split by tokens. `parallel/tensor_parallel/layers.py` defines the roles.
"""

from __future__ import annotations

from ingot.model.config import ModelConfig

Role = tuple[str, int]  # name, and into how many units the outputs (for "row" the inputs) can be split; 0 for none


def tensor_plan(config: ModelConfig) -> list[tuple[str, Role]]:
    """Patterns of module names, with `*` for the number of a layer, and the roles of the modules that match, in order.

    The heads of tasks and of pairs have no role: every rank computes them on whole sequences.
    """
    last = f"blocks.{config.num_hidden_layers - 1}" if config.norm_placement == "post" else "final_norm"
    # A transform, or the head of pairs, is computed by every rank on the joined output, with whole gradients. And where
    # few tokens are targets, their gradients are fewer than those of all tokens.
    alone = config.causal and not config.head_transform and not config.pair_head
    head = "only_head" if alone else "vocabulary_head"
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
        ("head", (head, 0)),
        ("pair_head.dropout", ("same_dropout", 0)),
        ("head.dropout", ("same_dropout", 0)),
    ]


def tensor_problems(config: ModelConfig, tensor: int, sequence_length: int) -> list[str]:
    """Why a model cannot be split over `tensor` ranks, each with its numbers; empty if it can."""
    problems = []
    if config.num_attention_heads % tensor:
        problems.append(f"model.num_attention_heads {config.num_attention_heads} is not a multiple of it")
    if config.kv_heads % tensor and tensor % config.kv_heads:
        problems.append(f"model.num_key_value_heads {config.kv_heads} is neither a divisor nor a multiple of it")
    if config.mlp_size % tensor:
        problems.append(f"model.intermediate_size {config.mlp_size} is not a multiple of it")
    if sequence_length % tensor:
        problems.append(f"data.sequence_length {sequence_length} is not a multiple of it")
    if (tensor - 1) * -(-config.vocab_size // tensor) >= config.vocab_size:
        problems.append(f"model.vocab_size {config.vocab_size} is too small to be split")
    return [f"parallel.tensor is {tensor}, and {problem}" for problem in problems]
