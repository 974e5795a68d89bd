"""The small parts of a block: norms, rotary positions, MLP.

Legend: B batch, T time, D width, H heads, E head size, F mlp width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig

ACTIVATIONS = {
    "gelu": nn.functional.gelu,
    "gelu_tanh": lambda x: nn.functional.gelu(x, approximate="tanh"),
    "silu": nn.functional.silu,
    "relu_squared": lambda x: nn.functional.relu(x).square(),
}


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * weight over the last dim (arXiv 1910.07467).

    The mean square and the division are computed in fp32, whatever the type of x.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.rms_norm(x, self.weight.shape, self.weight, self.eps)


class LayerNorm(nn.LayerNorm):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last dim (arXiv 1607.06450); the bias is optional."""

    def __init__(self, size: int, eps: float, bias: bool):
        super().__init__(size, eps=eps, bias=bias)


def make_norm(config: ModelConfig, size: int) -> nn.Module:
    """The configured norm over a last dim of `size`."""
    if config.norm == "rmsnorm":
        return RMSNorm(size, config.norm_eps)
    return LayerNorm(size, config.norm_eps, config.bias)


Rotation = tuple[Tensor, Tensor]


def rotation_of(positions_BT: Tensor, head_size: int, base: float, dtype: torch.dtype = torch.float32) -> Rotation:
    """Cosines and signed sines that `rotate` takes, (B, T, 1, E) each (arXiv 2104.09864, half-split as in Llama).

    The frequencies are computed here, in fp32, and are part of no module: a module that is cast to bf16, or
    materialised from the meta device, has nothing that could spoil them. Only the tables are rounded to `dtype`.
    """
    pairs = torch.arange(0, head_size, 2, dtype=torch.float32, device=positions_BT.device)
    frequencies = base ** (-pairs / head_size)
    angles_BT1e = positions_BT.float()[:, :, None, None] * frequencies
    cos, sin = angles_BT1e.cos().to(dtype), angles_BT1e.sin().to(dtype)
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x_BTHE: Tensor, rotation: Rotation) -> Tensor:
    """Turns the pairs (x[i], x[i + E/2]) of each head by the angle of its position, (B, T, H, E)."""
    cos_BT1E, sin_BT1E = rotation
    swapped_BTHE = x_BTHE.roll(x_BTHE.shape[-1] // 2, dims=-1)
    return torch.addcmul(x_BTHE * cos_BT1E, swapped_BTHE, sin_BT1E)


class MLP(nn.Module):
    """down(activation(up(x))), or gated down(activation(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        width, hidden = config.width, config.mlp_size
        self.gate = nn.Linear(width, hidden, bias=config.bias) if config.gated_mlp else None
        self.up = nn.Linear(width, hidden, bias=config.bias)
        self.down = nn.Linear(hidden, width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]

    def forward(self, x_BTD: Tensor) -> Tensor:
        if self.gate is None:
            return self.down(self.activation(self.up(x_BTD)))
        return self.down(self.activation(self.gate(x_BTD)) * self.up(x_BTD))
