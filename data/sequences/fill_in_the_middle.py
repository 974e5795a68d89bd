"""Fill-in-the-middle: documents rearranged so that next-token prediction learns to fill a gap (Bavarian et al. 2022).

A document `prefix middle suffix` becomes one of these two, each half of the time:

    PSM    <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
    SPM    <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle      (their variant 2)

between its own begin and end tokens. The two split points are uniform over the positions between tokens.
"""

from __future__ import annotations

import numpy as np

from ingot.data.order.keyed_random import uniform

_FILL = 23  # number of a random stream


class FillInTheMiddle:
    """Rearranges documents inside rows: a pure function of (seed, slot, position of the document in the row)."""

    def __init__(
        self,
        *,
        prefix_id: int | None,
        middle_id: int | None,
        suffix_id: int | None,
        bos_id: int | None,
        eos_id: int | None,
        seed: int,
        rate: float = 0.5,
        spm_rate: float = 0.5,
    ):
        """
        Args:
            rate: share of the documents that are rearranged.
            spm_rate: share of SPM among those.

        Raises:
            ValueError: a rate outside [0, 1], or a tokenizer that lacks one of the three tokens.
        """
        for name, value in (("fim_rate", rate), ("fim_spm_rate", spm_rate)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], is {value}")
        if None in (prefix_id, middle_id, suffix_id) or len({prefix_id, middle_id, suffix_id}) < 3:
            raise ValueError(
                "the tokenizer lacks <fim_prefix>, <fim_middle> or <fim_suffix>, which fill-in-the-middle needs: "
                "set fim_rate to 0, or use a tokenizer with these three tokens"
            )
        self.prefix_id, self.middle_id, self.suffix_id = prefix_id, middle_id, suffix_id
        self.bos_id, self.eos_id = bos_id, eos_id
        self.seed, self.rate, self.spm_rate = seed, rate, spm_rate

    def __call__(
        self, tokens_BT: np.ndarray, starts_BT: np.ndarray, slots_B: np.ndarray, lengths_B: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, starts, lengths) of rows with the same row length. The new tokens make documents longer: they first
        take the place of padding, and what does not fit into the row then is dropped at its end.

        The first or last document of a row may be only a part of one; it counts as a document. A document with fewer
        than two tokens (begin and end token not counted) is not changed.

        Args:
            tokens_BT: int64 [B, T]. For next-token prediction with the additional column; `objectives.clm` comes after.
            starts_BT: bool [B, T], True where a document begins.
            slots_B: slot of each row.
            lengths_B: tokens of each row before its padding (None: no padding).
        """
        num_rows, T = tokens_BT.shape
        lengths = np.full(num_rows, T, dtype=np.int64) if lengths_B is None else np.array(lengths_B, dtype=np.int64)
        tokens, starts = tokens_BT.copy(), starts_BT.copy()
        for row in range(num_rows):
            lengths[row] = self._row(tokens[row], starts[row], int(slots_B[row]), int(lengths[row]))
        return tokens, starts, lengths

    def _row(self, tokens_T: np.ndarray, starts_T: np.ndarray, slot: int, length: int) -> int:
        """Rearrange one row in place; returns its new number of tokens."""
        begins = np.union1d(0, np.flatnonzero(starts_T[:length]))
        draws = uniform(self.seed, _FILL, slot, begins[:, None], np.arange(4))
        if not length or not (draws[:, 0] < self.rate).any():
            return length
        documents = np.split(tokens_T[:length].copy(), begins[1:])
        is_start = starts_T[begins]
        for n in np.flatnonzero(draws[:, 0] < self.rate):
            documents[n] = self._document(documents[n], bool(is_start[n]), draws[n, 1:])
        edges = np.cumsum([0, *(len(document) for document in documents)])
        new_length = min(int(edges[-1]), len(tokens_T))
        tokens_T[:new_length] = np.concatenate(documents)[:new_length]
        starts_T[:new_length] = False
        starts_T[edges[:-1][is_start & (edges[:-1] < new_length)]] = True
        if new_length < len(tokens_T):
            starts_T[new_length] = True  # padding is a segment of its own
        return new_length

    def _document(self, tokens: np.ndarray, is_start: bool, draws: np.ndarray) -> np.ndarray:
        head = int(is_start and tokens[0] == self.bos_id)
        tail = int(len(tokens) > head and tokens[-1] == self.eos_id)
        body = tokens[head : len(tokens) - tail]
        if len(body) < 2:
            return tokens
        prefix, middle, suffix = np.split(body, np.sort((draws[:2] * (len(body) + 1)).astype(np.int64)))
        if draws[2] < self.spm_rate:
            parts = [[self.prefix_id, self.suffix_id], suffix, [self.middle_id], prefix, middle]
        else:
            parts = [[self.prefix_id], prefix, [self.suffix_id], suffix, [self.middle_id], middle]
        return np.concatenate([tokens[:head], *parts, tokens[len(tokens) - tail :]]).astype(np.int64)
