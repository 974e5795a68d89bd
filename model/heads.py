"""The head of a language model: hidden states to logits, or to the loss.

Legend: ... any leading dims, N rows (tokens), D width, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model.config import ModelConfig
from model.layers import ACTIVATIONS, make_norm
from model.loss import linear_cross_entropy


class HeadTransform(nn.Module):
    """BERT's norm(activation(dense(x))) before the head's matrix (arXiv 1810.04805)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.width, config.width, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config, config.width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(hidden)))


class LanguageModelHead(nn.Module):
    """Logits, or the summed loss, from hidden states.

    The matrix is this module's own registered parameter, tied or not, and the loss is computed inside `forward`: an
    engine that keeps parameters in pieces gathers them for exactly as long as their module runs.
    """

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = HeadTransform(config) if config.head_transform else None
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.width))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None

    def forward(self, hidden: Tensor, labels: Tensor | None = None) -> Tensor:
        """Logits (..., V) of hidden (..., D); with labels (...), the fp32 sum of the targets' cross-entropies."""
        if self.transform is not None:
            hidden = self.transform(hidden)
        if labels is None:
            return nn.functional.linear(hidden, self.weight, self.bias)
        return linear_cross_entropy(hidden.flatten(0, -2), self.weight, self.bias, labels.flatten())
