"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): small networks after frozen projections."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ingot.model.transformer import Transformer


class AdaptedLinear(nn.Module):
    """y + up(gelu(down(y))) of the output y of a projection. A new adapter's `up` is 0, so that it changes nothing."""

    def __init__(self, base_layer: nn.Linear, bottleneck_size: int):
        super().__init__()
        self.base_layer = base_layer
        device = base_layer.weight.device
        self.adapter_down = nn.Linear(base_layer.out_features, bottleneck_size, device=device)
        self.adapter_up = nn.Linear(bottleneck_size, base_layer.out_features, device=device)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + self.adapter_up(nn.functional.gelu(self.adapter_down(y)))


def add_adapters(model: Transformer, bottleneck_size: int) -> None:
    """Adds one adapter after the attention output and one after the MLP of each block, before the residual sum."""
    block: Any  # its projections are replaced by modules of another type
    for block in model.blocks:
        block.attention.output = AdaptedLinear(block.attention.output, bottleneck_size)
        block.mlp.down = AdaptedLinear(block.mlp.down, bottleneck_size)
