"""What the model is to predict: next tokens (CLM) or masked ones (MLM). Pure functions of tokens, seed and slot."""

from __future__ import annotations

import math

import numpy as np

from ingot.data.order.keyed_random import mix, uniform
from ingot.data.sequences.masking import UNITS, choose_spans, choose_words, span_lengths, words

IGNORE_INDEX = -100  # label of a token that is no target

# Shares of the chosen tokens (BERT, Devlin et al. 2019, section 3.1): 80% masked, 10% random, 10% kept.
MASKED, RANDOM = 0.8, 0.1

_CHOICE, _ACTION, _REPLACEMENT = 2, 3, 4  # separate streams of random numbers; 1 is the order's


def clm(tokens_BT1: np.ndarray, starts_BT1: np.ndarray, eos_id: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Next-token prediction: (input_ids, labels), each int64 [B, T], from tokens [B, T + 1].

    `starts_BT1` is True where a document begins. A document's last token has nothing to predict, so its label is
    IGNORE_INDEX; unless the next document opens with the end-of-text token itself, as with GPT-2's single token.
    """
    labels = tokens_BT1[:, 1:].copy()
    foreign = starts_BT1[:, 1:]
    if eos_id is not None:
        foreign = foreign & (labels != eos_id)
    labels[foreign] = IGNORE_INDEX
    return tokens_BT1[:, :-1].copy(), labels


def clm_rows(tokens_BT: np.ndarray, starts_BT: np.ndarray, lengths_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Next-token prediction inside each row, for rows that best fit has packed: (input_ids, labels), each int64 [B, T].

    Row b has lengths_B[b] tokens and then padding. The last token of each piece of a document and all padding have
    label IGNORE_INDEX: what follows in the row is another document.
    """
    num_rows, T = tokens_BT.shape
    labels = np.full((num_rows, T), IGNORE_INDEX, dtype=np.int64)
    inside = ~starts_BT[:, 1:] & (np.arange(1, T) < np.asarray(lengths_B)[:, None])
    labels[:, :-1][inside] = tokens_BT[:, 1:][inside]
    return tokens_BT.copy(), labels


class MaskedLanguageModel:
    """Masked prediction after BERT; masks depend on (seed, slot, position) alone, so they change with every epoch.

    `unit` is what is masked at once: single tokens, whole words (one of 80/10/10 for all of a word's tokens), or spans
    of whole words after SpanBERT (one for all of a span). Words and spans need `is_word_start`, bool [vocabulary], from
    data.masking.word_starts.
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
        """Raises ValueError for a probability outside (0, 1], an unknown unit, or a tokenizer without mask token."""
        if not 0 < probability <= 1:
            raise ValueError(f"mlm_probability must be in (0, 1], is {probability}")
        if mask_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which the mlm objective needs: choose objective clm, or a tokenizer "
                "with one (those that launcher/prepare.py trains have it)"
            )
        if unit not in UNITS:
            raise ValueError(f"mlm unit {unit!r} is unknown: choose one of {', '.join(UNITS)}")
        assert unit == "token" or (is_word_start is not None and len(is_word_start) == vocab_size), unit
        self.probability, self.mask_id, self.seed = probability, mask_id, seed
        self.unit, self._is_word_start = unit, is_word_start
        self._is_special = np.zeros(vocab_size, dtype=bool)
        self._is_special[sorted(special_ids | {mask_id})] = True
        self._ordinary = np.flatnonzero(~self._is_special)

    def __call__(
        self, tokens_BT: np.ndarray, slots_B: np.ndarray, starts_BT: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels), each int64 [B, T]; labels are IGNORE_INDEX but at the chosen positions.

        In each row round(probability * ordinary tokens) positions are chosen, at least one if there is any: exactly
        for single tokens, to within less than one word for words and spans. `starts_BT` is True where a document
        begins; neither words nor spans reach beyond. Padding must be a special token.
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

        row, column = np.nonzero(chosen)
        slot = slot_B1[row, 0]
        action = uniform(self.seed, _ACTION, slot, unit_BT[row, column])
        draw = mix(self.seed, _REPLACEMENT, slot, column) % np.uint64(len(self._ordinary))
        new = tokens_BT[row, column].copy()
        new = np.where(action < MASKED + RANDOM, self._ordinary[draw.astype(np.int64)], new)
        new = np.where(action < MASKED, self.mask_id, new)
        input_ids = tokens_BT.copy()
        input_ids[row, column] = new
        return input_ids, labels

    def _choose(self, unit_T, tokens_T, ordinary_T, starts_T, score_T, slot: int, budget: int) -> None:
        """Write into `unit_T`, at each chosen position, where its unit begins."""
        if self.unit == "token":
            candidates = np.flatnonzero(ordinary_T)
            picked = candidates[np.argpartition(score_T[candidates], budget - 1)[:budget]]
            unit_T[picked] = picked
            return
        begins = words(tokens_T, ordinary_T, starts_T, self._is_word_start)
        first_W = np.flatnonzero(begins)
        word_T = np.where(ordinary_T, np.cumsum(begins) - 1, -1)
        length_W = np.bincount(word_T[ordinary_T], minlength=len(first_W))
        unit_W = np.full(len(first_W), -1, dtype=np.int64)
        if self.unit == "word":
            picked = choose_words(score_T[first_W], length_W, budget)
            unit_W[picked] = first_W[picked]
        else:
            # A span goes on only to a word that touches the one before, in the same document.
            joined_W = np.append(False, first_W[1:] == first_W[:-1] + length_W[:-1]) & ~starts_T[first_W]
            span_W = span_lengths(self.seed, slot, first_W)
            for first, stop in choose_spans(score_T[first_W], length_W, joined_W, span_W, budget):
                unit_W[first:stop] = first_W[first]
        unit_T[ordinary_T] = unit_W[word_T[ordinary_T]]
