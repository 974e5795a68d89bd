"""Packing by concatenation: which tokens of a shard an instance covers, and where documents begin inside it.

The documents of a shard follow one another in one stream; instance i is the tokens [i L, i L + L + 1) of it. The last
one is the first of the next instance: next-token prediction needs it as a label, masked prediction leaves it alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def count_instances(num_tokens: int, sequence_length: int) -> int:
    """Instances of `sequence_length` tokens, and one more token each, in a stream of `num_tokens`."""
    return max(0, (num_tokens - 1) // sequence_length)


class InstanceMap:
    """Instance number of a corpus -> (shard, first token), for shards of `shard_tokens` tokens each."""

    def __init__(self, shard_tokens: Sequence[int], sequence_length: int):
        self.sequence_length = sequence_length
        self._ends = np.cumsum([count_instances(n, sequence_length) for n in shard_tokens], dtype=np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def locate(self, instance: int) -> tuple[int, int]:
        """(shard, index of the first token in the shard's stream)."""
        assert 0 <= instance < len(self), (instance, len(self))
        shard = int(np.searchsorted(self._ends, instance, side="right"))
        before = int(self._ends[shard - 1]) if shard else 0
        return shard, (instance - before) * self.sequence_length


def positions(starts_BT: np.ndarray) -> np.ndarray:
    """Position of each token in its document, int64 [B, T]; 0 at each start of a document and of a row.

    `starts_BT` is bool: True where a document begins.
    """
    index = np.arange(starts_BT.shape[1], dtype=np.int64)
    return index - np.maximum.accumulate(np.where(starts_BT, index, 0), axis=1)


def cumulative_lengths(starts_BT: np.ndarray) -> np.ndarray:
    """`cu_seqlens` of the rows laid end to end: int32 [segments + 1], from 0 to B * T.

    Attention stays inside a segment; every document and every row begins one.
    """
    first = starts_BT.copy()
    first[:, 0] = True
    return np.append(np.flatnonzero(first), first.size).astype(np.int32)


def arrange(rows: Sequence[Sequence[int]], sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, positions, cu_seqlens) of rows that hold pieces of the given lengths, in tokens, and then padding.

    `starts` is bool [B, T], `positions` int64 [B, T], `cu_seqlens` int32 [segments + 1]; T is `sequence_length`. A
    row's padding is a segment of its own, so nothing attends to it.
    """
    starts = np.zeros((len(rows), sequence_length), dtype=bool)
    for row, lengths in enumerate(rows):
        ends = np.cumsum([0, *lengths])
        assert ends[-1] <= sequence_length, (lengths, sequence_length)
        assert min(lengths, default=1) > 0, lengths
        starts[row, ends[ends < sequence_length]] = True
    return starts, positions(starts), cumulative_lengths(starts)
