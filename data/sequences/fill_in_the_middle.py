"""Fill-in-the-middle: documents rearranged so that next-token prediction learns to fill a gap (Bavarian et al. 2022).

A document `prefix middle suffix` becomes, half of the time each,

    PSM    <fim_prefix> prefix <fim_suffix> suffix <fim_middle> middle
    SPM    <fim_prefix> <fim_suffix> suffix <fim_middle> prefix middle      (their variant 2)

between its own begin and end tokens. The two cuts are uniform over the places between tokens.
"""

from __future__ import annotations

import numpy as np

from ingot.data.order.keyed_random import uniform

_FILL = 23  # a stream of random numbers of its own


class FillInTheMiddle:
    """Rearranges documents inside rows; a pure function of (seed, slot, place of the document in the row)."""

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
        """`rate` is the share of documents that are rearranged, `spm_rate` the share of SPM among those.

        Raises ValueError for rates outside [0, 1] and for a tokenizer without the three tokens.
        """
        for name, value in (("fim_rate", rate), ("fim_spm_rate", spm_rate)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must be in [0, 1], is {value}")
        if None in (prefix_id, middle_id, suffix_id) or len({prefix_id, middle_id, suffix_id}) < 3:
            raise ValueError(
                "the tokenizer lacks <fim_prefix>, <fim_middle> or <fim_suffix>, which fill-in-the-middle needs: "
                "set the rate to 0, or use a tokenizer with these three tokens"
            )
        self.prefix_id, self.middle_id, self.suffix_id = prefix_id, middle_id, suffix_id
        self.bos_id, self.eos_id = bos_id, eos_id
        self.seed, self.rate, self.spm_rate = seed, rate, spm_rate

    def __call__(
        self, tokens_BT: np.ndarray, starts_BT: np.ndarray, slots_B: np.ndarray, lengths_B: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(tokens, starts, lengths) of rows as long as before: what the new tokens push out at the end is cut off.

        `tokens_BT` is int64 [B, T] and `starts_BT` bool, True where a document begins; for next-token prediction they
        have the additional column, and `data.objectives.clm` comes after. Row b has lengths_B[b] tokens (None: all),
        then padding, which makes room before anything is cut. The part of a document that a row begins or ends with
        counts as a document. Fewer than two tokens, begin and end not counted, stay as they are.
        """
        num_rows, T = tokens_BT.shape
        lengths = np.full(num_rows, T, dtype=np.int64) if lengths_B is None else np.array(lengths_B, dtype=np.int64)
        tokens, starts = tokens_BT.copy(), starts_BT.copy()
        for row in range(num_rows):
            lengths[row] = self._row(tokens[row], starts[row], int(slots_B[row]), int(lengths[row]))
        return tokens, starts, lengths

    def _row(self, tokens_T: np.ndarray, starts_T: np.ndarray, slot: int, length: int) -> int:
        """Rearrange one row in place; returns how many tokens it has then."""
        begins = np.union1d(0, np.flatnonzero(starts_T[:length]))
        draws = uniform(self.seed, _FILL, slot, begins[:, None], np.arange(4))
        if not length or not (draws[:, 0] < self.rate).any():
            return length
        documents = np.split(tokens_T[:length].copy(), begins[1:])
        is_start = starts_T[begins]
        for n in np.flatnonzero(draws[:, 0] < self.rate):
            documents[n] = self._document(documents[n], bool(is_start[n]), draws[n, 1:])
        places = np.cumsum([0, *(len(document) for document in documents)])
        new_length = min(int(places[-1]), len(tokens_T))
        tokens_T[:new_length] = np.concatenate(documents)[:new_length]
        starts_T[:new_length] = False
        starts_T[places[:-1][is_start & (places[:-1] < new_length)]] = True
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
