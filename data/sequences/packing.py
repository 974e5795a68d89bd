"""Packing by concatenation: the tokens of an instance, and the positions and segments of packed rows.

The documents of a corpus are one stream of tokens, through all its shards. Instance i is the tokens
[i L, i L + L + 1) of the stream. Its last token is also the first of the next instance: next-token prediction needs it
as a label, masked prediction does not use it. So an epoch skips at most L tokens of the whole corpus. An instance
belongs to the shard in which it begins; it may end in a later one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def count_instances(num_tokens: int, sequence_length: int) -> int:
    """Number of instances of `sequence_length` tokens (and the first token after each) in a stream of `num_tokens`."""
    return max(0, (num_tokens - 1) // sequence_length)


def instances_by_shard(shard_tokens: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """For each shard, both int64: how many instances begin in it, and the index of the token where the first one
    begins.

    The second has no meaning where the first is 0.
    """
    ends = np.cumsum(shard_tokens, dtype=np.int64)
    number = count_instances(int(ends[-1]), sequence_length) if len(ends) else 0
    begun = np.minimum(number, -(-ends // sequence_length))  # instances that begin before the shard's end
    before = np.append(0, begun[:-1])[: len(ends)]
    return begun - before, before * sequence_length - (ends - shard_tokens)


def positions(starts_BT: np.ndarray) -> np.ndarray:
    """Position of each token in its document, int64 [B, T]; 0 where a document or a row begins.

    `starts_BT` is bool, True where a document begins.
    """
    index = np.arange(starts_BT.shape[1], dtype=np.int64)
    return index - np.maximum.accumulate(np.where(starts_BT, index, 0), axis=1)


def cumulative_lengths(starts_BT: np.ndarray) -> np.ndarray:
    """`cu_seqlens` of all rows, one after another: int32 [segments + 1], from 0 to B * T.

    Attention stays inside a segment. Every document and every row begins a segment.
    """
    first = starts_BT.copy()
    first[:, 0] = True
    return np.append(np.flatnonzero(first), first.size).astype(np.int32)


def describe_rows(rows: Sequence[Sequence[int]], sequence_length: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(starts, positions, cu_seqlens) of rows that hold pieces of the given lengths, in tokens, and then padding.

    `starts` is bool [B, T], `positions` int64 [B, T], `cu_seqlens` int32 [segments + 1]; T is `sequence_length`. The
    padding of a row is a segment of its own, so no token attends to it.
    """
    starts = np.zeros((len(rows), sequence_length), dtype=bool)
    for row, lengths in enumerate(rows):
        ends = np.cumsum([0, *lengths])
        assert ends[-1] <= sequence_length, (lengths, sequence_length)
        assert min(lengths, default=1) > 0, lengths
        starts[row, ends[ends < sequence_length]] = True
    return starts, positions(starts), cumulative_lengths(starts)
