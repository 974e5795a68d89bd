"""Examples of downstream tasks as token ids with targets, and their packing into one row without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX


@dataclass(frozen=True)
class Example:
    """One example, or one window of a long one.

    Attributes:
        ids, types: int64 [tokens], of all its documents one after the other.
        target: int64 () for a class or choice, (2,) for the first and last token of an answer, (tokens,) for labels or
            next tokens; float64 (C,) for labels that are 0 or 1, or numbers.
        num_targets: how many losses it has: targets that are not -100.
        record_index: index of the record that it was made from.
        documents: tokens of each document; one, except for multiple choice.
        alignment: int64 (tokens, ...), the part of its record that each token stands for, and -1 for none: the index of
            a word, or the first character and the one after the last. A prediction is read from it.
    """

    ids: np.ndarray
    types: np.ndarray
    target: np.ndarray
    num_targets: int
    record_index: int
    documents: tuple[int, ...]
    alignment: np.ndarray | None = None

    @property
    def is_per_token(self) -> bool:
        """Whether each token has a target."""
        return self.target.dtype.kind == "i" and self.target.shape == self.ids.shape

    def without_target(self) -> Example:
        """The same example without a loss: a model still computes it."""
        nothing = np.nan if self.target.dtype.kind == "f" else IGNORE_INDEX
        return replace(self, target=np.full_like(self.target, nothing), num_targets=0)

    def filler(self, num_tokens: int) -> Example:
        """An example of the same form with `num_tokens` tokens, at least one per document, and without a loss."""
        others = len(self.documents) - 1
        target = self.without_target().target
        return Example(
            np.full(num_tokens, self.ids[0]),
            np.zeros(num_tokens, np.int64),
            np.full(num_tokens, IGNORE_INDEX) if self.is_per_token else target,
            0,
            self.record_index,
            (num_tokens - others, *[1] * others),
        )


def insert_virtual_tokens(example: Example, count: int, position: int) -> Example:
    """The example with the ids -1 to -count inserted at `position` of each document: tokens whose embeddings are
    learned. Targets and alignment move along."""
    starts = np.cumsum([0, *example.documents[:-1]])
    positions = np.repeat(starts + position, count)  # in the ids before
    ids = np.insert(example.ids, positions, np.tile(-1 - np.arange(count), len(starts)))
    target = example.target
    if example.is_per_token:
        target = np.insert(target, positions, IGNORE_INDEX)
    elif target.shape == (2,) and target.dtype.kind == "i":
        target = np.where(target >= position, target + count, target)
    alignment = None if example.alignment is None else np.insert(example.alignment, positions, -1, axis=0)
    return replace(
        example,
        ids=ids,
        types=np.insert(example.types, positions, 0),
        target=target,
        documents=tuple(length + count for length in example.documents),
        alignment=alignment,
    )


def pack(examples: Sequence[Example], labels: str) -> dict[str, np.ndarray]:
    """One row that holds all documents of the examples, in order: `input_ids`, `positions`, `token_types` (int64 [1,
    tokens]), `cu_seqlens` (int32 [documents + 1]), and the targets under the name `labels`, [1, tokens] where each
    token has one and [examples, ...] where each example has one."""
    lengths = [length for example in examples for length in example.documents]
    ids = np.concatenate([example.ids for example in examples])
    targets = [example.target for example in examples]
    return {
        "input_ids": ids[None],
        "positions": np.concatenate([np.arange(length) for length in lengths])[None],
        "token_types": np.concatenate([example.types for example in examples])[None],
        "cu_seqlens": np.cumsum([0, *lengths], dtype=np.int32),
        labels: np.concatenate(targets)[None] if examples[0].is_per_token else np.stack(targets),
    }
