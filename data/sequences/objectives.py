"""What the model predicts: next tokens (CLM) or masked tokens (MLM). Pure functions of tokens, seed and slot."""

from __future__ import annotations

import math

import numpy as np

from ingot.data.order.keyed_random import mix, uniform
from ingot.data.sequences.masking import UNITS, choose_spans, choose_words, row_word_starts, span_lengths

IGNORE_INDEX = -100  # label of a token that is not a target; the default of torch.nn.functional.cross_entropy

# Shares of the chosen tokens (BERT, Devlin et al. 2019, section 3.1): 80% masked, 10% random, 10% kept.
MASKED, RANDOM = 0.8, 0.1

_CHOICE, _ACTION, _REPLACEMENT = 2, 3, 4  # numbers of random streams; 1 is the order's


def clm(tokens_BT1: np.ndarray, starts_BT1: np.ndarray, eos_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Next-token prediction: (input_ids, labels), each int64 [B, T], from tokens [B, T + 1].

    `starts_BT1` is True where a document begins. The last token of a document has nothing to predict, so its label is
    IGNORE_INDEX. Exception: if the next document begins with `eos_id`, as with GPT-2's single special token, that token
    is the label.
    """
    labels = tokens_BT1[:, 1:].copy()
    foreign = starts_BT1[:, 1:]
    if eos_id is not None:
        foreign = foreign & (labels != eos_id)
    labels[foreign] = IGNORE_INDEX
    return tokens_BT1[:, :-1].copy(), labels


def clm_rows(tokens_BT: np.ndarray, starts_BT: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Next-token prediction inside each row, for rows of best-fit packing: (input_ids, labels), each int64 [B, T].

    Row b has lengths_B[b] tokens and then padding. The label of the last token of each document, and of all padding, is
    IGNORE_INDEX, because another document follows in the row.
    """
    num_rows, T = tokens_BT.shape
    labels = np.full((num_rows, T), IGNORE_INDEX, dtype=np.int64)
    inside = ~starts_BT[:, 1:] & (np.arange(1, T) < np.asarray(lengths_B)[:, None])
    labels[:, :-1][inside] = tokens_BT[:, 1:][inside]
    return tokens_BT.copy(), labels


class MaskedLanguageModel:
    """Masked prediction as in BERT. Masks depend only on (seed, slot, position), so they change with every epoch.

    `unit` is what is masked at once: single tokens, whole words, or spans of whole words as in SpanBERT. All tokens of
    a word or span get the same action (masked, random or kept). Words and spans need `is_word_start`, bool
    [vocabulary], from masking.word_starts.
    """

    def __init__(
        self,
        *,
        probability: float,
        mask_id: int | None,
        special_ids: frozenset[int],
        vocab_size: int,
        seed: int,
        unit: str = "token",
        is_word_start: np.ndarray | None = None,
    ):
        """Raises ValueError for a probability outside (0, 1], an unknown unit, or a tokenizer without a mask token."""
        if not 0 < probability <= 1:
            raise ValueError(f"mlm_probability must be in (0, 1], is {probability}")
        if mask_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which the mlm objective needs: choose objective clm, or a tokenizer "
                "with a mask token (launcher/prepare.py trains such tokenizers)"
            )
        if unit not in UNITS:
            raise ValueError(f"mask_unit {unit!r} is unknown: choose one of {', '.join(UNITS)}")
        assert unit == "token" or (is_word_start is not None and len(is_word_start) == vocab_size), unit
        self.probability, self.mask_id, self.seed = probability, mask_id, seed
        self.unit, self._is_word_start = unit, is_word_start
        self._is_special = np.zeros(vocab_size, dtype=bool)
        self._is_special[sorted(special_ids | {mask_id})] = True
        self._ordinary = np.flatnonzero(~self._is_special)

    def __call__(
        self, tokens_BT: np.ndarray, slots_B: np.ndarray, starts_BT: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels), each int64 [B, T]; labels are IGNORE_INDEX except at the chosen positions.

        In each row round(probability * ordinary tokens) positions are chosen, and at least one if the row has ordinary
        tokens. The number is exact for single tokens; for words and spans it differs by less than one word.
        `starts_BT` is True where a document begins: words and spans do not cross the border of a document. Padding must
        be a special token.
        """
        slot_B1 = np.asarray(slots_B)[:, None]
        score_BT = mix(self.seed, _CHOICE, slot_B1, np.arange(tokens_BT.shape[1]))
        if starts_BT is None:
            starts_BT = np.zeros(tokens_BT.shape, dtype=bool)
        # The first position of the unit that a chosen token belongs to; -1 elsewhere.
        unit_BT = np.full(tokens_BT.shape, -1, dtype=np.int64)
        for row, tokens in enumerate(tokens_BT):
            ordinary = ~self._is_special[tokens]
            num_ordinary = int(np.count_nonzero(ordinary))
            if num_ordinary:
                budget = max(1, math.floor(self.probability * num_ordinary + 0.5))
                slot = int(slot_B1[row, 0])
                self._choose(unit_BT[row], tokens, ordinary, starts_BT[row], score_BT[row], slot, budget)
        chosen = unit_BT >= 0
        labels = np.where(chosen, tokens_BT, IGNORE_INDEX)

        rows, columns = np.nonzero(chosen)
        slots = slot_B1[rows, 0]
        action = uniform(self.seed, _ACTION, slots, unit_BT[rows, columns])
        draw = mix(self.seed, _REPLACEMENT, slots, columns) % np.uint64(len(self._ordinary))
        new = tokens_BT[rows, columns].copy()
        new = np.where(action < MASKED + RANDOM, self._ordinary[draw.astype(np.int64)], new)
        new = np.where(action < MASKED, self.mask_id, new)
        input_ids = tokens_BT.copy()
        input_ids[rows, columns] = new
        return input_ids, labels

    def _choose(
        self,
        unit_T: np.ndarray,
        tokens_T: np.ndarray,
        ordinary_T: np.ndarray,
        starts_T: np.ndarray,
        score_T: np.ndarray,
        slot: int,
        budget: int,
    ) -> None:
        """Write into `unit_T`, at each chosen position, the position where its unit begins."""
        if self.unit == "token":
            candidates = np.flatnonzero(ordinary_T)
            picked = candidates[np.argpartition(score_T[candidates], budget - 1)[:budget]]
            unit_T[picked] = picked
            return
        assert self._is_word_start is not None
        begins = row_word_starts(tokens_T, ordinary_T, starts_T, self._is_word_start)
        first_W = np.flatnonzero(begins)
        word_T = np.where(ordinary_T, np.cumsum(begins) - 1, -1)
        length_W = np.bincount(word_T[ordinary_T], minlength=len(first_W))
        unit_W = np.full(len(first_W), -1, dtype=np.int64)
        if self.unit == "word":
            picked = choose_words(score_T[first_W], length_W, budget)
            unit_W[picked] = first_W[picked]
        else:
            # A span continues only with a word that directly follows, in the same document.
            joined_W = np.append(False, first_W[1:] == first_W[:-1] + length_W[:-1]) & ~starts_T[first_W]
            span_W = span_lengths(self.seed, slot, first_W)
            for first, stop in choose_spans(score_T[first_W], length_W, joined_W, span_W, budget):
                unit_W[first:stop] = first_W[first]
        unit_T[ordinary_T] = unit_W[word_T[ordinary_T]]
