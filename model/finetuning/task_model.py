"""A transformer with the head of a downstream task: classes of sequences or tokens, answer spans, or plain features.

Legend: B rows, T time, N flattened tokens (B * T), D hidden size, C labels, S examples: documents of `cu_seqlens`, else
rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ingot.model.attention.masks import segments_of
from ingot.model.config import ModelConfig
from ingot.model.cross_entropy import IGNORED
from ingot.model.heads import HeadTransform
from ingot.model.transformer import Transformer

Problem = Literal["classes", "labels", "regression", "choice"]
Pooling = Literal["first", "last", "mean"]


@dataclass
class TaskConfig:
    """The head of a task.

    Attributes:
        kind: "sequence" classifies examples, "token" classifies each token, "span" finds a start and an end (two labels
            for each token), "features" has no classifier and returns hidden states; see also `pooled`.
        num_labels: Outputs of the classifier; 2 for spans.
        pooling: For sequences: the "first" token (BERT), the "last" token (GPT), or the "mean" of all.
        layer: Layer before the classifier: "none", "tanh" (BERT's pooler, RoBERTa's classifier.dense) or "transform"
            (dense, activation and norm, as in the head of a masked language model; ModernBERT).
        bias: Whether the classifier has a bias.
        dropout: Probability of zeroing an input of the classifier, in training.
        problem: For sequences: one of C "classes", any number of C "labels", "regression" of C numbers, or "choice" of
            one of several consecutive examples, by a single output (arXiv 1810.04805, SWAG).
        labels: Names of the outputs of the classifier, for reports and for export. Null for none.
    """

    kind: Literal["sequence", "token", "span", "features"] = "sequence"
    num_labels: int = 2
    pooling: Pooling = "first"
    layer: Literal["none", "tanh", "transform"] = "none"
    bias: bool = True
    dropout: float = 0.0
    problem: Problem = "classes"
    labels: list[str] | None = None


class Pooler(nn.Module):
    """BERT's tanh(dense(x)) (arXiv 1810.04805)."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.dense(x))


class TaskHead(nn.Module):
    """layer -> dropout -> classifier, each if configured."""

    def __init__(self, config: ModelConfig, task: TaskConfig):
        super().__init__()
        self.layer: nn.Module = nn.Identity()
        if task.layer == "tanh":
            self.layer = Pooler(config.hidden_size)
        elif task.layer == "transform":
            self.layer = HeadTransform(config)
        self.dropout = nn.Dropout(task.dropout)
        self.classifier = None
        if task.kind != "features":
            self.classifier = nn.Linear(config.hidden_size, task.num_labels, bias=task.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.layer(x))
        return x if self.classifier is None else self.classifier(x)


class TaskModel(Transformer):
    """A transformer with the head of a task.

    Raises:
        ValueError: from `ModelConfig.validate`.
    """

    def __init__(self, config: ModelConfig, task: TaskConfig):
        super().__init__(config)
        self.task = task
        self.head = TaskHead(config, task)

    def forward(
        self,
        input_ids_BT: Tensor,
        positions_BT: Tensor | None = None,
        cu_seqlens: Tensor | None = None,
        token_types_BT: Tensor | None = None,
        attention_mask_BS: Tensor | None = None,
        labels: Tensor | None = None,
        label_smoothing: float = 0.0,
    ) -> Tensor:
        """Logits, or, with labels, the loss.

        Args:
            positions_BT, cu_seqlens, token_types_BT, attention_mask_BS: as in `hidden_states`. With `cu_seqlens`
                each document is an example, without it each row.
            labels: int64 (S,) of classes, (B, T) of tokens, (S, 2) first and last token of an answer, counted from the
                first token of the example, or (S / choices,) of the right choices; -100 for none. Float (S, C) of
                labels (0 or 1) or of regression; NaN for none.
            label_smoothing: for classes, as in torch's cross-entropy.

        Returns:
            Without labels: (S, C) for sequences, (B, T, C) for tokens and spans, hidden states (B, T, D) for features.
            With labels: the **sum** of the losses of all examples (for "token" of all tokens), fp32. The loss is the
            cross-entropy, for spans the mean of start and end, for labels and regression the mean over C.
        """
        hidden_BTD = self.hidden_states(
            input_ids_BT, positions_BT, cu_seqlens, token_types_BT, attention_mask_BS=attention_mask_BS
        )
        if self.task.kind == "features":
            return hidden_BTD
        if self.task.kind == "sequence":
            logits = self.head(pool(hidden_BTD, self.task.pooling, cu_seqlens, attention_mask_BS))
        else:
            logits = self.head(hidden_BTD)
        if labels is None:
            return logits
        if self.task.kind == "span":
            return span_loss(logits, labels, cu_seqlens, attention_mask_BS)
        return label_loss(logits.float(), labels, self.task.problem, label_smoothing)

    def pooled(self, hidden_BTD: Tensor, cu_seqlens: Tensor | None = None, mask_BT: Tensor | None = None) -> Tensor:
        """The pooled state of each example, (S, D), after the layer of the head if it has one: BERT's
        `pooler_output`."""
        return self.head.layer(pool(hidden_BTD, self.task.pooling, cu_seqlens, mask_BT))


def pool(hidden_BTD: Tensor, pooling: str, cu_seqlens: Tensor | None, mask_BT: Tensor | None) -> Tensor:
    """The first, last or mean hidden state of each example, (S, D)."""
    batch, length = hidden_BTD.shape[:2]
    if cu_seqlens is not None:
        hidden_ND, bounds = hidden_BTD.flatten(0, 1), cu_seqlens.long()
        if pooling == "mean":
            lengths_S = bounds.diff().clamp(min=1)
            sums_SD = hidden_ND.new_zeros(len(lengths_S), hidden_ND.shape[1])
            sums_SD.index_add_(0, segments_of(cu_seqlens, len(hidden_ND)), hidden_ND)
            return sums_SD / lengths_S[:, None]
        return hidden_ND[bounds[:-1] if pooling == "first" else bounds[1:] - 1]
    if pooling == "mean":
        if mask_BT is None:
            return hidden_BTD.mean(1)
        weights_BT1 = mask_BT[:, :, None].to(hidden_BTD.dtype)
        return (hidden_BTD * weights_BT1).sum(1) / weights_BT1.sum(1).clamp(min=1)
    rows_B = torch.arange(batch, device=hidden_BTD.device)
    if mask_BT is None:
        return hidden_BTD[:, 0 if pooling == "first" else -1]
    mask = mask_BT.int()
    index_B = mask.argmax(-1) if pooling == "first" else length - 1 - mask.flip(-1).argmax(-1)
    return hidden_BTD[rows_B, index_B]


def label_loss(logits: Tensor, labels: Tensor, problem: str, label_smoothing: float) -> Tensor:
    """The summed loss of fp32 logits (..., C), for choices (S, 1). Labels are (...) for classes, else (..., C)."""
    if problem == "choice":
        logits, problem = logits.view(len(labels), -1), "classes"
    if problem == "classes":
        return nn.functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
            label_smoothing=label_smoothing,
        )
    labels = labels.float().view_as(logits)
    known = labels.isfinite()
    labels = torch.where(known, labels, 0.0)
    if problem == "labels":
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    else:
        losses = (logits - labels).square()
    return (losses * known).sum() / logits.shape[-1]


def span_loss(logits_BT2: Tensor, labels_S2: Tensor, cu_seqlens: Tensor | None, mask_BT: Tensor | None) -> Tensor:
    """Sum over the examples of (cross-entropy of the start + of the end) / 2, each over the tokens of the example."""
    batch, length = logits_BT2.shape[:2]
    if cu_seqlens is None:
        if mask_BT is not None:
            logits_BT2 = logits_BT2.masked_fill(~mask_BT[:, :, None], float("-inf"))
        return nn.functional.cross_entropy(logits_BT2.float(), labels_S2, ignore_index=IGNORED, reduction="sum") / 2
    segments_N, logits_N2 = segments_of(cu_seqlens, batch * length), logits_BT2.float().flatten(0, 1)
    index_N2 = segments_N[:, None].expand(-1, 2)
    num_segments = len(cu_seqlens) - 1
    max_S2 = logits_N2.new_full((num_segments, 2), float("-inf"))
    max_S2 = max_S2.scatter_reduce(0, index_N2, logits_N2.detach(), "amax")
    sums_S2 = logits_N2.new_zeros(num_segments, 2).scatter_add(0, index_N2, (logits_N2 - max_S2[segments_N]).exp())
    known_S2 = labels_S2 != IGNORED
    tokens_S2 = torch.where(known_S2, cu_seqlens[:-1, None] + labels_S2, 0)
    losses_S2 = torch.where(known_S2, sums_S2, 1.0).log() + max_S2 - logits_N2.gather(0, tokens_S2)
    return torch.where(known_S2, losses_S2, 0.0).sum() / 2
