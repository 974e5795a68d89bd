"""Which tokens of a corpus each of its instances has, for each kind of packing.

A packing numbers the instances of a corpus, shard after shard. The order (data/order) uses only these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ingot.data.corpus.shards import Corpus
from ingot.data.sequences.best_fit import pack
from ingot.data.sequences.options import PACKINGS
from ingot.data.sequences.packing import instances_by_shard


class Packing(Protocol):
    """`shard_instances` is the number of instances of each shard, int64 [shards]."""

    shard_instances: np.ndarray

    def read_into(self, tokens: np.ndarray, shard: int, index: int) -> tuple[np.ndarray, int, int]:
        """Fill the row `tokens` with instance `index` of a shard.

        Returns:
            Where documents begin in the row (int64), the number to subtract from these to get indices of the row, and
            the number of tokens of the instance. The row behind them is not changed.

        Raises:
            What `Corpus.read_into` raises.
        """
        ...


class ConcatenatePacking:
    """Instance i of a corpus is the tokens [i L, i L + L + 1) of its stream, which goes through all shards.

    An instance belongs to the shard in which it begins. If it ends in a later shard, only the beginning of that shard
    is read: a rank that reads some of the shards does not fetch their neighbours too.
    """

    def __init__(self, corpus: Corpus, sequence_length: int):
        self.corpus, self.sequence_length = corpus, sequence_length
        self.shard_instances, first = instances_by_shard(corpus.shards.tokens, sequence_length)
        self._first, self._tokens = first.tolist(), corpus.shards.tokens.tolist()

    def read_into(self, tokens: np.ndarray, shard: int, index: int) -> tuple[np.ndarray, int, int]:
        start = self._first[shard] + index * self.sequence_length
        left = self._tokens[shard] - start
        if left >= len(tokens):
            starts, shift = self.corpus.read_into(tokens, shard, start)
            return starts, shift, len(tokens)
        starts, shift = self.corpus.read_into(tokens[:left], shard, start)
        parts = [starts - shift]
        while left < len(tokens):
            shard += 1
            part = tokens[left : left + self._tokens[shard]]
            if len(part):
                starts, shift = self.corpus.read_into(part, shard, 0, whole=False)
                parts.append(starts - shift + left)
                left += len(part)
        return np.concatenate(parts), 0, len(tokens)


class BestFitPacking:
    """An instance is one row of the best-fit packing of one shard. All document lengths are read at the start."""

    def __init__(self, corpus: Corpus, sequence_length: int):
        self.corpus = corpus
        self._bins = [pack(corpus.document_lengths(n), sequence_length) for n in range(len(corpus.shards))]
        self.shard_instances = np.array([bins.num_bins for bins in self._bins], dtype=np.int64)

    def read_into(self, tokens: np.ndarray, shard: int, index: int) -> tuple[np.ndarray, int, int]:
        pieces, at, starts = self._bins[shard].pieces(index), 0, []
        for start, stop in pieces:
            starts.append(at)
            self.corpus.read_into(tokens[at : at + stop - start], shard, start)
            at += stop - start
        if at < len(tokens):
            starts.append(at)  # the padding is a segment of its own
        return np.array(starts, dtype=np.int64), 0, at


def make_packings(corpora: Sequence[Corpus], packing: str, sequence_length: int) -> list[Packing]:
    """One for each corpus. Raises ValueError for an unknown packing."""
    if packing not in PACKINGS:
        raise ValueError(f"packing {packing!r} is unknown: choose one of {', '.join(PACKINGS)}")
    kind = ConcatenatePacking if packing == "concatenate" else BestFitPacking
    return [kind(corpus, sequence_length) for corpus in corpora]
