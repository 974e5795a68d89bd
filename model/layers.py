"""The small parts of a block: norms, activations, MLP.

Legend: B batch, T time, D hidden size.
"""

from __future__ import annotations

from torch import Tensor, nn

from ingot.model.config import ModelConfig

ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu": nn.functional.relu,
    "relu_squared": lambda x: nn.functional.relu(x).square(),
}


class RMSNorm(nn.RMSNorm):
    """x / sqrt(mean(x^2) + eps) * weight over the last dim (arXiv 1910.07467).

    The mean square and the division are computed in fp32, for every dtype of x.
    """

    def __init__(self, size: int, eps: float):
        super().__init__(size, eps=eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dim (arXiv 1607.06450). The bias is optional."""

    def __init__(self, size: int, eps: float, bias: bool):
        super().__init__(size, eps=eps, bias=bias)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """The configured norm over a last dim of `size`."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, config.norm_eps)
    return LayerNorm(size, config.norm_eps, config.has_bias("norm"))


class MLP(nn.Module):
    """down(activation(up(x))), or gated down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        hidden, intermediate, bias = config.hidden_size, config.mlp_size, config.has_bias("mlp")
        self.gate = nn.Linear(hidden, intermediate, bias=bias) if config.gated_mlp else None
        self.up = nn.Linear(hidden, intermediate, bias=bias)
        self.down = nn.Linear(intermediate, hidden, bias=bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x_BTD)))
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
