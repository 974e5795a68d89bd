"""Activation recomputation (Chen et al. 2016, arXiv 1604.06174): less memory for some of the forward done twice.

`full` keeps the input of each block only. `selective` also keeps what is dear to compute and small to keep: the results
of matrix products, of attention, and of sums over tensor ranks; norms, activations, rotary turns, and what is gathered
from other ranks are made again.
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

_KEPT_NAMES = (
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "_c10d_functional::reduce_scatter_tensor",
)


def checkpoint_activations(blocks: Sequence[nn.Module], how: str, kept: Sequence[str] = ()) -> None:
    """Changes what each of `blocks` keeps for its backward pass: `none`, `selective`, or `full` recomputation.

    Args:
        kept: names of the model's own operators, such as `library::attention`, whose results `selective` keeps.
    """
    if how == "none":
        return
    contexts = {}
    if how == "selective":
        policy = partial(_policy, frozenset((*_KEPT_NAMES, *kept)))
        contexts["context_fn"] = partial(create_selective_checkpoint_contexts, policy)
    for block in blocks:
        # The method is replaced, not the module: names stay, and an engine's hooks on the block stay outside.
        block.forward = _checkpointed(block, contexts)


class _Plain(nn.Module):
    """A block as it was."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.run = block, block.forward

    def forward(self, *inputs):
        return self.run(*inputs)


def _checkpointed(block: nn.Module, contexts: dict) -> Callable:
    plain = _Plain(block)

    @wraps(block.forward)
    def run(*inputs):
        if not torch.is_grad_enabled():
            return plain.run(*inputs)
        # Who computes with rounded copies has put them in the parameters' places, and they are gone in the backward.
        copies = {name: p for name, p in plain.named_parameters() if not isinstance(p, nn.Parameter)}
        function = partial(torch.func.functional_call, plain, copies) if copies else plain.run
        arguments = (inputs,) if copies else inputs
        # An engine may hold other parameters in the backward than in the forward, so their shapes are not compared.
        return checkpoint(function, *arguments, use_reentrant=False, determinism_check="none", **contexts)

    return run


def _policy(
    kept: frozenset[str], context: object, operator: object, *args: object, **kwargs: object
) -> CheckpointPolicy:
    name = operator._schema.name if hasattr(operator, "_schema") else str(operator)
    return CheckpointPolicy.MUST_SAVE if name in kept else CheckpointPolicy.PREFER_RECOMPUTE
