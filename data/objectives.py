"""What the model is to predict: next tokens (CLM) or masked ones (MLM). Pure functions of tokens, seed and slot."""

from __future__ import annotations

import math

import numpy as np

from data.order import mix

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


class MaskedLanguageModel:
    """Masked prediction after BERT; masks depend on (seed, slot, position) alone, so they change with every epoch."""

    def __init__(
        self, *, probability: float, mask_id: int | None, special_ids: frozenset[int], vocab_size: int, seed: int
    ):
        """Raises ValueError for a probability outside (0, 1] or a tokenizer without mask token."""
        if not 0 < probability <= 1:
            raise ValueError(f"mlm_probability must be in (0, 1], is {probability}")
        if mask_id is None:
            raise ValueError(
                "the tokenizer has no mask token, which the mlm objective needs: choose objective clm, or a tokenizer "
                "with one (those that launcher/prepare.py trains have it)"
            )
        self.probability, self.mask_id, self.seed = probability, mask_id, seed
        self._is_special = np.zeros(vocab_size, dtype=bool)
        self._is_special[sorted(special_ids | {mask_id})] = True
        self._ordinary = np.flatnonzero(~self._is_special)

    def __call__(self, tokens_BT: np.ndarray, slots_B: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(input_ids, labels), each int64 [B, T]; labels are IGNORE_INDEX but at the chosen positions.

        In each row exactly round(probability * ordinary tokens) positions are chosen, at least one if there is any.
        """
        slot_B1 = np.asarray(slots_B)[:, None]
        position_T = np.arange(tokens_BT.shape[1])
        score = mix(self.seed, _CHOICE, slot_B1, position_T)
        ordinary = ~self._is_special[tokens_BT]
        chosen = np.zeros(tokens_BT.shape, dtype=bool)
        for row in range(len(tokens_BT)):
            candidates = np.flatnonzero(ordinary[row])
            if len(candidates):
                count = max(1, math.floor(self.probability * len(candidates) + 0.5))
                smallest = np.argpartition(score[row, candidates], count - 1)[:count]
                chosen[row, candidates[smallest]] = True
        labels = np.where(chosen, tokens_BT, IGNORE_INDEX)

        row, column = np.nonzero(chosen)
        slot = slot_B1[row, 0]
        action = (mix(self.seed, _ACTION, slot, column) >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
        draw = mix(self.seed, _REPLACEMENT, slot, column) % np.uint64(len(self._ordinary))
        new = tokens_BT[row, column].copy()
        new = np.where(action < MASKED + RANDOM, self._ordinary[draw.astype(np.int64)], new)
        new = np.where(action < MASKED, self.mask_id, new)
        input_ids = tokens_BT.copy()
        input_ids[row, column] = new
        return input_ids, labels
