"""What a model takes of a device's memory: the parameters that a tensor rank holds, and what a forward pass keeps for
its backward pass. Arithmetic on a configuration; a test holds it against what autograd keeps.

The terms are those of arXiv 2205.05198 (section 4): per token of a micro-batch, in bytes, layer by layer.
"""

from __future__ import annotations

import re

import torch

from ingot.model.config import ModelConfig
from ingot.model.tensor_plan import tensor_plan
from ingot.model.transformer import LanguageModel


def held_shapes(config: ModelConfig, tensor: int = 1) -> dict[str, tuple[int, ...]]:
    """Shapes of the parameters that each of `tensor` ranks holds, with padding, by name; a tied one is named once."""
    with torch.device("meta"):
        model = LanguageModel(config)
    roles = {}
    for pattern, role in tensor_plan(config):
        matches = re.compile(re.escape(pattern).replace(r"\*", r"\d+"))
        roles |= {name: role for name, _ in model.named_modules() if matches.fullmatch(name)}
    shapes = {}
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        shapes[name] = _held(tuple(parameter.shape), kind, *roles.get(owner, ("whole", 0)), tensor)
    return shapes


def _held(shape: tuple[int, ...], kind: str, role: str, units: int, tensor: int) -> tuple[int, ...]:
    if role in ("vocabulary", "vocabulary_head"):
        return (-(-shape[0] // tensor), *shape[1:])
    if role == "column":
        return (max(1, units // tensor) * (shape[0] // units), *shape[1:])
    if role == "row" and kind == "weight":
        return (shape[0], shape[1] // tensor)
    return shape


def kept_by_block(
    config: ModelConfig,
    *,
    sequence_length: int,
    tensor: int = 1,
    element: int = 2,
    mask: int = 1,
    fused_attention: bool = True,
    gathered_again: bool = False,
) -> dict[str, float]:
    """Bytes per token that one block keeps for its backward pass on a tensor rank, by what they are.

    Args:
        element: bytes of a number in the computation: 2 for bf16, 4 for fp32.
        mask: bytes of an element of a dropout's mask: 1 on CUDA, as many as `element` on a CPU.
        fused_attention: False adds the scores that an attention without fusion keeps: 5 x heads x length bytes in bf16
            with dropout.
        gathered_again: whether what is gathered from the tensor ranks is gathered once more in the backward pass, as
            Megatron-LM does, or kept whole, as here.
    """
    width, head = config.hidden_size, config.head_size
    heads, kv_heads = config.num_attention_heads / tensor, max(1.0, config.kv_heads / tensor)
    hidden = config.mlp_size / tensor
    # A LayerNorm keeps its input; an RMSNorm its input and the normalised input, both in fp32.
    per_norm = element if config.norm == "layernorm" else 8
    whole = 1 / tensor if gathered_again else 1.0
    kept = {
        "norms": 2 * per_norm * width / tensor,
        "input of query, key, value": element * width * whole,
        "query, key, value": element * head * (heads + 2 * kv_heads),
        "attention": element * head * heads,
        "input of mlp": element * width * whole,
        "mlp": element * hidden * (4 if config.gated_mlp else 2),
    }
    if config.qk_norm:
        kept["norms of query and key"] = per_norm * head * (heads + kv_heads)
    if element == 4:
        kept["sums of attention"] = 4 * heads
    if config.dropout > 0:
        kept["dropout"] = 2 * mask * width / tensor
    if not fused_attention:
        kept["scores"] = (2 * element + 1) * heads * sequence_length
    return kept


def kept_outside(
    config: ModelConfig, *, targets: float, tensor: int = 1, element: int = 2, mask: int = 1
) -> dict[str, float]:
    """Bytes per token that a forward pass keeps outside of the blocks.

    Args:
        targets: share of the tokens that have a target: 1 in causal modelling, the masked share in masked modelling.
    """
    width = config.hidden_size
    per_norm = element if config.norm == "layernorm" else 8
    kept = {"ids": 8.0, "gradient of the head's input": element * width * targets}
    if config.norm_placement == "pre":
        kept["final norm"] = per_norm * width / tensor
    if config.embedding_norm:
        kept["norm of embeddings"] = per_norm * width
    if config.head_transform:
        kept["transform of the head"] = 3 * element * width * targets
    if config.dropout > 0:
        kept["dropout of embeddings"] = mask * width / tensor
    return kept


def kept_activations(
    config: ModelConfig,
    *,
    tokens: int,
    sequence_length: int,
    tensor: int = 1,
    element: int = 2,
    mask: int = 1,
    activation_checkpointing: str = "none",
    targets: float = 1.0,
) -> float:
    """Bytes that the forward pass of a micro-batch of `tokens` tokens leaves on a tensor rank for its backward pass.

    Args:
        activation_checkpointing: `none`, or `selective` or `full`: then what each block keeps, and once what a block that is computed
            again keeps.
        targets, mask: as above.
    """
    common = {"tensor": tensor, "element": element, "mask": mask}
    block = sum(kept_by_block(config, sequence_length=sequence_length, **common).values())
    outside = sum(kept_outside(config, targets=targets, **common).values())
    matrix = element * -(-config.vocab_size // tensor) * config.hidden_size  # its gradient is made in the forward pass
    per_token = outside + config.num_hidden_layers * block
    if activation_checkpointing != "none":
        kept = element * config.hidden_size / tensor  # a block's input
        if activation_checkpointing == "selective":
            kept += _products(config, tensor, element)
        per_token = outside + config.num_hidden_layers * kept + block
    return tokens * per_token + matrix


def _products(config: ModelConfig, tensor: int, element: int) -> float:
    """Bytes per token of the results of a block's matrix products and attention."""
    head, hidden = config.head_size, config.mlp_size / tensor
    heads, kv_heads = config.num_attention_heads / tensor, max(1.0, config.kv_heads / tensor)
    numbers = head * (2 * heads + 2 * kv_heads) + hidden * (2 if config.gated_mlp else 1) + 2 * config.hidden_size
    if tensor > 1:  # their sums over the ranks
        numbers += 2 * config.hidden_size / tensor
    return element * numbers + (4 * heads if element == 4 else 0)
