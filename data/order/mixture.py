"""Mixing corpora in exact proportions: the corpus of each slot, and how many earlier slots belong to that corpus.

A segment of weights holds from its first slot until the next segment begins. Counts continue over that border: a change
of weights neither repeats nor skips an instance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np

PERIOD = 65_536  # after so many slots the proportions are exact; weights are rounded to 1/65,536


def quotas(weights: Sequence[float]) -> np.ndarray:
    """Slots of each corpus in one period: integers in proportion to `weights` (largest remainder), in lowest terms.

    Their sum, the period, divides 65,536. Raises ValueError for a weight that is not positive, or that is too small for
    one slot of 65,536.
    """
    if not weights or any(not math.isfinite(w) or w <= 0 for w in weights):
        raise ValueError(
            f"the weights of a mixture must be positive numbers, are {weights}: to use no data of a corpus, remove it"
        )
    total = math.fsum(weights)
    exact = [w / total * PERIOD for w in weights]
    result = np.array([math.floor(e) for e in exact], dtype=np.int64)
    remainders = sorted(range(len(weights)), key=lambda k: (result[k] - exact[k], k))
    result[remainders[: PERIOD - int(result.sum())]] += 1
    if (result == 0).any():
        least = total / PERIOD
        raise ValueError(
            f"weights {weights}: a weight must be at least {least:.3g}, 1/{PERIOD} of their sum, to have an effect"
        )
    return result // np.gcd.reduce(result)


def quotas_with_zeros(weights: Sequence[float]) -> np.ndarray:
    """As `quotas`, but some of the weights (not all) may be 0."""
    present = [k for k, weight in enumerate(weights) if weight != 0]
    if not present:
        raise ValueError(f"weights {list(weights)}: at least one of a segment must be positive")
    result = np.zeros(len(weights), dtype=np.int64)
    result[present] = quotas([weights[k] for k in present])
    return result


class PeriodTable:
    """One period of a mixture with `quotas[k]` slots of corpus k: `corpus` and `ordinal` of each of its slots.

    `ordinal` is the number of earlier slots of the same corpus in the period. Greedy: each slot goes to the corpus that
    is furthest behind its quota, in integer arithmetic (ties: the first corpus).
    """

    def __init__(self, quotas: np.ndarray):
        self.quotas, self.period = quotas, int(quotas.sum())
        if np.count_nonzero(quotas) == 1:  # then the period is one slot
            self.corpus = np.flatnonzero(quotas)
        else:
            self.corpus = np.array(_greedy(quotas.tolist(), self.period), dtype=np.int64)
        # The slots sorted by corpus; `_first[k]` is where those of corpus k begin.
        by_corpus = np.argsort(self.corpus, kind="stable")
        self._first = np.cumsum(quotas) - quotas
        self._slots = by_corpus
        self._sorted = self.corpus[by_corpus] * self.period + by_corpus
        self.ordinal = np.empty(self.period, dtype=np.int64)
        self.ordinal[by_corpus] = np.arange(self.period) - self._first[self.corpus[by_corpus]]

    def count(self, corpus: int | np.ndarray, slots: int | np.ndarray) -> np.ndarray:
        """How many of the slots [0, slots) belong to `corpus`; arrays that broadcast.

        The period repeats in both directions: for negative `slots` the result is minus the number in [slots, 0)."""
        period, phase = np.divmod(slots, self.period)
        return (
            period * self.quotas[corpus]
            + np.searchsorted(self._sorted, corpus * self.period + phase)
            - self._first[corpus]
        )

    def slot(self, corpus: int, ordinal: int) -> int:
        """The slot of the `ordinal`-th instance of a corpus with a quota above 0."""
        period, rest = divmod(ordinal, int(self.quotas[corpus]))
        return period * self.period + int(self._slots[self._first[corpus] + rest])


def _greedy(quotas: list[int], period: int) -> list[int]:
    behind = [0] * len(quotas)
    corpus = []
    for _ in range(period):
        behind = [b + q for b, q in zip(behind, quotas, strict=True)]
        k = behind.index(max(behind))
        behind[k] -= period
        corpus.append(k)
    return corpus


@lru_cache(maxsize=16)
def _period_table(quotas: tuple[int, ...]) -> PeriodTable:
    """A table for all mixtures with these quotas: to build one takes a tenth of a second."""
    return PeriodTable(np.array(quotas, dtype=np.int64))


class Mixture:
    """Corpora mixed with weights that may change.

    Args:
        segments: (first slot, weight of each corpus) pairs.

    Raises:
        ValueError: unless the first segment starts at 0, the starts ascend, each segment has one weight for each
            corpus, and each corpus has a positive weight in some segment.
    """

    def __init__(self, segments: Sequence[tuple[int, Sequence[float]]], num_corpora: int):
        _check_segments(segments, num_corpora)
        self.starts = np.array([start for start, _ in segments], dtype=np.int64)
        count = quotas_with_zeros if len(segments) > 1 else quotas
        self.tables = [_period_table(tuple(count(list(weights)).tolist())) for _, weights in segments]
        every = np.arange(num_corpora)
        lengths = np.diff(self.starts)
        gone = [table.count(every, length) for table, length in zip(self.tables, lengths, strict=False)]
        self.before = np.cumsum([np.zeros(num_corpora, dtype=np.int64), *gone], axis=0)  # [segments, corpora]

    def segment(self, slots: np.ndarray) -> np.ndarray:
        """The segment of each slot."""
        return np.searchsorted(self.starts, slots, side="right") - 1

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(corpus, ordinal) of each of `slots` (int64, >= 0): the number of earlier slots that belong to its corpus."""
        corpus, ordinal = np.empty_like(slots), np.empty_like(slots)
        segment = self.segment(slots)
        for s in np.unique(segment):
            table, mine = self.tables[s], segment == s
            period, phase = np.divmod(slots[mine] - self.starts[s], table.period)
            k = table.corpus[phase]
            corpus[mine] = k
            ordinal[mine] = self.before[s, k] + period * table.quotas[k] + table.ordinal[phase]
        return corpus, ordinal

    def slot(self, corpus: int, ordinal: int) -> int | None:
        """The slot of a corpus's `ordinal`-th instance; None if the corpus has weight 0 before it is reached."""
        s = int(np.searchsorted(self.before[:, corpus], ordinal, side="right")) - 1
        if not self.tables[s].quotas[corpus]:
            return None
        return int(self.starts[s]) + self.tables[s].slot(corpus, ordinal - int(self.before[s, corpus]))


def _check_segments(segments: Sequence[tuple[int, Sequence[float]]], num_corpora: int) -> None:
    starts = [start for start, _ in segments]
    if not starts or starts[0] != 0 or any(a >= b for a, b in pairwise(starts)):
        raise ValueError(
            f"the first segment of weights must start at slot 0 and each other one at a later slot than the one before "
            f"it; they start at {starts}"
        )
    for start, weights in segments:
        if len(weights) != num_corpora:
            raise ValueError(f"there are {num_corpora} corpora but {len(weights)} weights from slot {start} on")
    for k in range(num_corpora):
        if len(segments) > 1 and not any(weights[k] for _, weights in segments):
            raise ValueError(f"corpus {k} has weight 0 in every segment: remove it")
