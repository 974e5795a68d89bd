"""The head of a language model: hidden states to logits, or to the loss.

Legend: ... any leading dims, N rows (tokens), D hidden size, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ingot.model.config import ModelConfig
from ingot.model.cross_entropy import IGNORED, VocabularyPart
from ingot.model.layers import ACTIVATIONS, make_norm
from ingot.model.loss import keep_targets, linear_cross_entropy


class HeadTransform(nn.Module):
    """BERT's norm(activation(dense(x))) before the matrix of the head (arXiv 1810.04805)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size, bias=config.bias)
        self.activation = ACTIVATIONS[config.activation]
        self.norm = make_norm(config, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.activation(self.dense(hidden)))


class PairHead(nn.Module):
    """BERT's classifier of sentence pairs: tanh(pooler(first token)), then two classes (arXiv 1810.04805)."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size, bias=True)
        self.classifier = nn.Linear(config.hidden_size, 2, bias=True)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, first_BD: Tensor, labels_B: Tensor | None = None) -> Tensor:
        """Logits (B, 2), or, with labels (B,) of 0, 1 or -100 for none, the fp32 sum of the cross-entropies."""
        logits_B2 = self.classifier(self.dropout(torch.tanh(self.pooler(first_BD))))
        if labels_B is None:
            return logits_B2
        return nn.functional.cross_entropy(logits_B2.float(), labels_B, ignore_index=IGNORED, reduction="sum")


class LanguageModelHead(nn.Module):
    """Logits, or the summed loss, from hidden states.

    The matrix is a registered parameter of this module, tied or not, and the loss is computed inside `forward`: an
    engine that shards parameters gathers them only while their module runs. Tensor parallelism sets `part`; the matrix
    and the bias then have only these rows of the vocabulary.
    """

    part: VocabularyPart | None = None
    make_part = VocabularyPart

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.transform = HeadTransform(config) if config.head_transform else None
        self.weight = nn.Parameter(torch.empty(config.vocab_size, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(config.vocab_size)) if config.head_bias else None
        self.softcap = config.final_logit_softcapping

    def forward(
        self,
        hidden: Tensor,
        labels: Tensor | None = None,
        *,
        target_rows: Tensor | None = None,
        z_loss: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Logits (..., V) of hidden (..., D), or, with labels (...), the fp32 sum of the losses of the targets.

        Args:
            target_rows: as in `keep_targets`, in the flattened rows. None: on a CPU they are searched. On other devices
                all rows are computed, because the host would have to wait to know how many targets there are; rows
                without a target change nothing.
        """
        if labels is not None:
            hidden, labels = hidden.flatten(0, -2), labels.flatten()
            if target_rows is not None or hidden.device.type == "cpu":
                hidden, labels = keep_targets(hidden, labels, target_rows)
        if self.transform is not None:
            hidden = self.transform(hidden)
        part = self.part
        weight: Tensor = self.weight
        bias: Tensor | None = self.bias
        if part is not None:
            hidden = part.enter(hidden)
            weight, bias = weight[: part.size], None if bias is None else bias[: part.size]  # the rest is padding
        if labels is None:
            logits = nn.functional.linear(hidden, weight, bias)
            logits = logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)
            return logits if part is None else part.join(logits)
        return linear_cross_entropy(
            hidden,
            weight,
            bias,
            labels,
            softcap=self.softcap,
            z_loss=z_loss,
            label_smoothing=label_smoothing,
            part=part,
        )
