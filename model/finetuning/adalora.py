"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): low-rank updates B diag(e) A, whose ranks share one budget.

The layers are peft's. A term of the loss keeps A and B orthogonal. The budget decreases during training: the smallest e
of all layers are removed, so some layers keep more ranks than others.

Legend: R rank, I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn

from ingot.model.cross_entropy import IGNORED
from ingot.model.transformer import Transformer

ORTHOGONALITY = 0.5  # weight of the orthogonality penalty, as in peft


def add_adalora(model: Transformer, rank: int, alpha: float, dropout: float, pattern: str) -> None:
    """Adds low-rank updates to the modules whose names match, and the orthogonality penalty to the loss of the model.

    The forward scales the updates by alpha / rank, also after ranks were removed.
    """
    from peft import AdaLoraConfig, inject_adapter_in_model
    from peft.tuners.adalora.layer import SVDLinear

    settings = AdaLoraConfig(
        init_r=rank,
        lora_alpha=cast(int, alpha),  # peft only divides by it, so a float works too
        lora_dropout=dropout,
        target_modules=pattern,
        total_step=1,  # for peft's own allocation of the budget, which is not used
    )
    inject_adapter_in_model(settings, model)
    penalties: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, SVDLinear):
            layer: Any = module
            del layer.ranknum  # a constant, but peft makes it a parameter
            layer.ranknum = {"default": float(rank)}
            module.register_forward_hook(_collect_penalty(penalties))
    model.register_forward_pre_hook(lambda *_: penalties.clear())
    model.register_forward_hook(_add_penalty(penalties), with_kwargs=True)


def orthogonality_penalty(a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """The mean of |A A^T - 1| and |B^T B - 1|, Frobenius norms; fp32."""
    a_RI, b_OR = a_RI.float(), b_OR.float()
    identity_RR = torch.eye(len(a_RI), device=a_RI.device)
    return ((a_RI @ a_RI.T - identity_RR).norm() + (b_OR.T @ b_OR - identity_RR).norm()) / 2


def _collect_penalty(penalties: list[Tensor]) -> Callable[[Any, tuple, Tensor], None]:
    def hook(module: Any, args: tuple, output: Tensor) -> None:  # in the forward, where engines gather the parameters
        if module.training and torch.is_grad_enabled():
            penalties.append(orthogonality_penalty(module.lora_A["default"], module.lora_B["default"]))

    return hook


def _add_penalty(penalties: list[Tensor]) -> Callable[[nn.Module, tuple, dict, Tensor], Tensor]:
    """A hook that adds the mean penalty of all layers to a summed loss, once for each target."""

    def hook(module: nn.Module, args: tuple, inputs: dict, loss: Tensor) -> Tensor:
        labels = inputs.get("labels", inputs.get("labels_BT"))
        if labels is None or not penalties:
            return loss
        return loss + ORTHOGONALITY * torch.stack(penalties).mean() * num_targets(module, labels)

    return hook


def num_targets(model: nn.Module, labels: Tensor) -> Tensor:
    """The number of targets that a loss sums over: examples with a label, or tokens if each token has a label."""
    known = labels.isfinite() if labels.is_floating_point() else labels != IGNORED
    one_per_example = getattr(getattr(model, "task", None), "kind", "token") != "token" and known.ndim > 1
    return known.any(-1).sum() if one_per_example else known.sum()
