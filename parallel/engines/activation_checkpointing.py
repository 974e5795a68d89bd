"""Activation checkpointing (Chen et al. 2016, arXiv 1604.06174): less memory, but some of the forward pass runs twice.

`full` keeps only the input of each block. `selective` also keeps results that are expensive to compute: those of matrix
products, of attention, and of sums over tensor ranks. Norms, activation functions, rotary embeddings and gathered
sequences are computed again. (`memory_budget` is a choice of the compiler: compilation.py.)
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ingot.parallel.torch_compat import operator_name

_KEPT_NAMES = (
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_mm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_fused_attention_overrideable",
    "_c10d_functional::reduce_scatter_tensor",
    "_c10d_functional::all_reduce",  # in blocks: the maxima of float8
)


def checkpoint_activations(blocks: Sequence[nn.Module], how: str, kept: Sequence[str] = (), every: int = 1) -> None:
    """Sets what each of `blocks` keeps for its backward pass.

    Args:
        how: `selective` or `full`; otherwise all blocks keep everything.
        kept: names of the model's own operators, such as `library::attention`, whose results `selective` keeps.
        every: of so many blocks the last one is checkpointed, and the others keep everything.
    """
    if how not in ("selective", "full"):
        return
    contexts: dict[str, Any] = {}
    if how == "selective":
        policy = partial(_policy, frozenset((*_KEPT_NAMES, *kept)))
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    for block in blocks[every - 1 :: every]:
        # The method is replaced, not the module. So names stay, and hooks of an engine on the block stay outside.
        block.forward = _checkpointed(block, contexts)


class _Original(nn.Module):
    """A block with its own forward method."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.run = block, block.forward

    def forward(self, *inputs):
        return self.run(*inputs)


def _checkpointed(block: nn.Module, contexts: dict[str, Any]) -> Callable:
    original = _Original(block)

    @wraps(block.forward)
    def run(*inputs):
        if not torch.is_grad_enabled():
            return original.run(*inputs)
        # `Bf16Compute` has put rounded copies in the parameters' places, and they are gone in the backward pass.
        copies: dict[str, torch.Tensor] = {
            name: p for name, p in original.named_parameters() if not isinstance(p, nn.Parameter)
        }

        def run_with_copies(*inputs):
            return torch.func.functional_call(original, copies, inputs)

        function = run_with_copies if copies else original.run
        # ZeRO-3 has other shapes of parameters in the backward pass than in the forward pass: no check of shapes.
        return checkpoint(function, *inputs, use_reentrant=False, determinism_check="none", **contexts)

    return run


def _policy(
    kept: frozenset[str], context: object, operator: object, *args: object, **kwargs: object
) -> CheckpointPolicy:
    is_kept = operator_name(operator) in kept
    return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE
