"""AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): low-rank additions B diag(e) A, whose ranks share one budget.

The layers are peft's. A and B are held orthogonal by a part of the loss; the budget falls while the model learns, and
what is given up are the smallest e of all layers, so some layers keep more ranks than others.

Legend: R rank, I inputs, O outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ingot.model.loss import IGNORED
from ingot.model.transformer import Transformer

ORTHOGONALITY = 0.5  # weight of that part of the loss, as in peft


def add_adalora(model: Transformer, rank: int, alpha: float, dropout: float, pattern: str) -> None:
    """Adds additions to the modules whose names match, and lets the model's loss hold them orthogonal.

    The forward scales them by alpha / rank, whatever is left of the rank.
    """
    from peft import AdaLoraConfig, inject_adapter_in_model
    from peft.tuners.adalora.layer import SVDLinear

    settings = AdaLoraConfig(
        init_r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=pattern, total_step=1
    )  # the steps are for peft's own allocation of the budget, which is not used
    inject_adapter_in_model(settings, model)
    departures: list[Tensor] = []
    for module in model.modules():
        if isinstance(module, SVDLinear):
            del module.ranknum  # a constant, which is no parameter here
            module.ranknum = {"default": float(rank)}
            module.register_forward_hook(_departing(departures))
    model.register_forward_pre_hook(lambda *_: departures.clear())
    model.register_forward_hook(_orthogonal(departures), with_kwargs=True)


def departure(a_RI: Tensor, b_OR: Tensor) -> Tensor:
    """The mean of |A A^T - 1| and |B^T B - 1|, Frobenius norms; fp32."""
    a_RI, b_OR = a_RI.float(), b_OR.float()
    one_RR = torch.eye(len(a_RI), device=a_RI.device)
    return ((a_RI @ a_RI.T - one_RR).norm() + (b_OR.T @ b_OR - one_RR).norm()) / 2


def _departing(departures: list[Tensor]):
    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:  # here, because engines gather the layer's parts
        if module.training and torch.is_grad_enabled():
            departures.append(departure(module.lora_A["default"], module.lora_B["default"]))

    return hook


def _orthogonal(departures: list[Tensor]):
    """Adds the mean departure of all layers to a summed loss, once for each of its targets."""

    def hook(module: nn.Module, args: tuple, inputs: dict, loss: Tensor) -> Tensor:
        labels = inputs.get("labels", inputs.get("labels_BT"))
        if labels is None or not departures:
            return loss
        return loss + ORTHOGONALITY * torch.stack(departures).mean() * num_targets(module, labels)

    return hook


def num_targets(model: nn.Module, labels: Tensor) -> Tensor:
    """Of how many targets a loss is the sum: of examples with a label, of tokens where each has one."""
    known = labels.isfinite() if labels.is_floating_point() else labels != IGNORED
    several = getattr(getattr(model, "task", None), "kind", "token") != "token" and known.ndim > 1
    return known.any(-1).sum() if several else known.sum()
