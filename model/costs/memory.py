"""Memory of a model on a device: the parameters of a tensor rank, and the activations that a forward pass saves for its
backward pass. Computed from a configuration only; a test compares it with what autograd saves.

The terms are those of arXiv 2205.05198 (section 4): bytes per token of a micro-batch, layer by layer.
"""

from __future__ import annotations

import re

import torch

from ingot.model.config import ModelConfig
from ingot.model.tensor_plan import Role, tensor_plan
from ingot.model.transformer import LanguageModel


def local_shapes(config: ModelConfig, tensor: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes, with padding, of the parameters on each of `tensor` ranks, by name. A tied parameter appears once."""
    with torch.device("meta"):
        model = LanguageModel(config)
    roles: dict[str, Role] = {}
    for pattern, role in tensor_plan(config):
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        roles |= {name: role for name, _ in model.named_modules() if matches.fullmatch(name)}
    shapes = {}
    for name, parameter in model.named_parameters():
        module, _, kind = name.rpartition(".")
        shapes[name] = _local_shape(tuple(parameter.shape), kind, roles.get(module, ("whole", 0)), tensor)
    return shapes


def _local_shape(shape: tuple[int, ...], kind: str, role_and_units: Role, tensor: int) -> tuple[int, ...]:
    role, units = role_and_units
    if role in ("vocabulary", "vocabulary_head", "only_head"):
        return (-(-shape[0] // tensor), *shape[1:])
    if role == "column":
        return (max(1, units // tensor) * (shape[0] // units), *shape[1:])
    if role == "row" and kind == "weight":
        return (shape[0], shape[1] // tensor)
    return shape


def saved_by_block(
    config: ModelConfig,
    *,
    sequence_length: int,
    tensor: int = 1,
    element: int = 2,
    mask: int = 1,
    fused_attention: bool = True,
    gathered_again: bool = False,
) -> dict[str, float]:
    """Bytes per token that one block saves for its backward pass on a tensor rank, by purpose.

    Args:
        element: bytes of a number in the computation: 2 for bf16, 4 for fp32.
        mask: bytes of an element of a dropout mask: 1 on CUDA, `element` on a CPU.
        fused_attention: False adds the scores that attention without fusion saves: 5 x heads x length bytes in bf16
            with dropout.
        gathered_again: True if tensors that are gathered from the tensor ranks are gathered again in the backward pass,
            as in Megatron-LM. False if they are saved whole, as in this code.
    """
    hidden, head = config.hidden_size, config.head_size
    heads, kv_heads = config.num_attention_heads / tensor, max(1.0, config.kv_heads / tensor)
    intermediate = config.mlp_size / tensor
    # A LayerNorm saves its input. An RMSNorm saves its input and the normalised input, both in fp32.
    per_norm = element if config.norm == "layernorm" else 8
    whole = 1 / tensor if gathered_again else 1.0
    saved = {
        "norms": 2 * per_norm * hidden / tensor,
        "input of query, key, value": element * hidden * whole,
        "query, key, value": element * head * (heads + 2 * kv_heads),
        "attention": element * head * heads,
        "input of mlp": element * hidden * whole,
        "mlp": element * intermediate * (4 if config.gated_mlp else 2),
    }
    if config.qk_norm:
        saved["norms of query and key"] = per_norm * head * (heads + kv_heads)
    if element == 4:
        saved["sums of attention"] = 4 * heads
    if config.dropout > 0:
        saved["dropout"] = 2 * mask * hidden / tensor
    if not fused_attention:
        saved["scores"] = (2 * element + 1) * heads * sequence_length
    return saved


def saved_outside_blocks(
    config: ModelConfig, *, targets: float, tensor: int = 1, element: int = 2, mask: int = 1
) -> dict[str, float]:
    """Bytes per token that a forward pass saves outside the blocks.

    Args:
        targets: share of the tokens that have a target: 1 in causal modelling, the masked share in masked modelling.
    """
    hidden = config.hidden_size
    per_norm = element if config.norm == "layernorm" else 8
    saved = {"ids": 8.0, "gradient of the head's input": element * hidden * targets}
    if config.norm_placement == "pre":
        saved["final norm"] = per_norm * hidden / tensor
    if config.embedding_norm:
        saved["norm of embeddings"] = per_norm * hidden
    if config.head_transform:
        saved["transform of the head"] = 3 * element * hidden * targets
    if config.dropout > 0:
        saved["dropout of embeddings"] = mask * hidden / tensor
    return saved


def activation_bytes(
    config: ModelConfig,
    *,
    tokens: int,
    sequence_length: int,
    tensor: int = 1,
    element: int = 2,
    mask: int = 1,
    activation_checkpointing: str = "none",
    every: int = 1,
    budget: float = 1.0,
    offload: bool = False,
    targets: float = 1.0,
) -> float:
    """Bytes that the forward pass of a micro-batch of `tokens` tokens saves on a tensor rank for its backward pass.

    Args:
        activation_checkpointing: "none", "selective", "full" or "memory_budget". With all but the first blocks save
            less, and the memory of one block that is recomputed is added once.
        every: of so many blocks one is checkpointed.
        budget: of "memory_budget": the share of a block's memory that is kept besides its input. An upper bound: what a
            compiled block keeps by default is less than what is counted here.
        offload: the inputs of checkpointed blocks are in the host's memory, but for one in use and one on its way.
        targets, mask: as in `saved_outside_blocks` and `saved_by_block`.
    """
    saved = saved_by_block(config, sequence_length=sequence_length, tensor=tensor, element=element, mask=mask)
    block = sum(saved.values())
    saved = saved_outside_blocks(config, targets=targets, tensor=tensor, element=element, mask=mask)
    outside = sum(saved.values())
    # The gradient of the head's matrix is computed in the forward pass.
    matrix = element * -(-config.vocab_size // tensor) * config.hidden_size
    per_token = outside + config.num_hidden_layers * block
    if activation_checkpointing != "none":
        checkpointed = config.num_hidden_layers // every
        block_input = element * config.hidden_size / tensor
        kept = checkpointed * block_input
        if offload:
            kept = min(2, checkpointed) * block_input
        elif activation_checkpointing == "selective":
            kept += checkpointed * _matrix_products(config, tensor, element)
        elif activation_checkpointing == "memory_budget":
            kept += checkpointed * budget * (block - block_input)
        per_token = outside + (config.num_hidden_layers - checkpointed) * block + kept + block
    return tokens * per_token + matrix


def _matrix_products(config: ModelConfig, tensor: int, element: int) -> float:
    """Bytes per token of the outputs of the matrix products and the attention of a block."""
    head, intermediate = config.head_size, config.mlp_size / tensor
    heads, kv_heads = config.num_attention_heads / tensor, max(1.0, config.kv_heads / tensor)
    numbers = head * (2 * heads + 2 * kv_heads) + intermediate * (2 if config.gated_mlp else 1)
    numbers += 2 * config.hidden_size
    if tensor > 1:  # the sums over the ranks
        numbers += 2 * config.hidden_size / tensor
    return element * numbers + (4 * heads if element == 4 else 0)
