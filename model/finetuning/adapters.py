"""Bottleneck adapters (Houlsby et al. 2019, arXiv 1902.00751): small networks behind frozen projections."""

from __future__ import annotations

from torch import Tensor, nn

from ingot.model.transformer import Transformer


class WithAdapter(nn.Module):
    """y + up(gelu(down(y))) of a projection's output y. A new adapter's `up` is 0, so that it changes nothing."""

    def __init__(self, base_layer: nn.Linear, width: int):
        super().__init__()
        self.base_layer = base_layer
        device = base_layer.weight.device
        self.adapter_down = nn.Linear(base_layer.out_features, width, device=device)
        self.adapter_up = nn.Linear(width, base_layer.out_features, device=device)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base_layer(x)
        return y + self.adapter_up(nn.functional.gelu(self.adapter_down(y)))


def add_adapters(model: Transformer, width: int) -> None:
    """Puts one behind the attention's output and one behind the MLP of each block, before the residual sum."""
    for block in model.blocks:
        block.attention.output = WithAdapter(block.attention.output, width)
        block.mlp.down = WithAdapter(block.mlp.down, width)
