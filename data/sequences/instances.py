"""Which tokens of a corpus its instances are, under each packing.

A layout numbers the instances of a corpus, shard after shard. The order (data/order) deals with these numbers only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from ingot.data.corpus.shards import Corpus
from ingot.data.sequences.best_fit import pack
from ingot.data.sequences.packing import instances_by_shard

PACKINGS = ("concatenate", "best_fit")


class Layout(Protocol):
    """`shard_instances`: instances of each shard, int64. `locate` turns instances into places: (shard, place in it)."""

    shard_instances: np.ndarray

    def read_into(self, tokens: np.ndarray, shard: int, place: int) -> tuple[np.ndarray, int, int]:
        """Fill the row `tokens` with the instance at a place. Returns where documents begin in it (int64), what to
        subtract from these, and how many tokens the row has; what is behind them is left as it was.

        Raises what Corpus.read_into does."""
        ...


class Concatenated:
    """Instance i of a corpus is the tokens [i L, i L + L + 1) of its stream, which goes on from shard to shard.

    An instance counts as one of the shard in which it begins. The part that lies in the next is read in passing, so
    that whoever reads a part of the shards does not fetch their neighbours too.
    """

    def __init__(self, corpus: Corpus, sequence_length: int):
        self.corpus, self.sequence_length = corpus, sequence_length
        self.shard_instances, first = instances_by_shard(corpus.shards.tokens, sequence_length)
        self._first, self._tokens = first.tolist(), corpus.shards.tokens.tolist()

    def read_into(self, tokens: np.ndarray, shard: int, place: int) -> tuple[np.ndarray, int, int]:
        start = self._first[shard] + place * self.sequence_length
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


class BestFit:
    """An instance is one row of best-fit packing, of a shard's documents alone. Reads all document lengths at once."""

    def __init__(self, corpus: Corpus, sequence_length: int):
        self.corpus = corpus
        self._bins = [pack(corpus.document_lengths(n), sequence_length) for n in range(len(corpus.shards))]
        self.shard_instances = np.array([bins.num_bins for bins in self._bins], dtype=np.int64)

    def read_into(self, tokens: np.ndarray, shard: int, place: int) -> tuple[np.ndarray, int, int]:
        pieces, at, starts = self._bins[shard].pieces(place), 0, []
        for start, stop in pieces:
            starts.append(at)
            self.corpus.read_into(tokens[at : at + stop - start], shard, start)
            at += stop - start
        if at < len(tokens):
            starts.append(at)  # the padding is a segment of its own
        return np.array(starts, dtype=np.int64), 0, at


def make_layouts(corpora: Sequence[Corpus], packing: str, sequence_length: int) -> list[Concatenated | BestFit]:
    """Raises ValueError for an unknown packing."""
    if packing not in PACKINGS:
        raise ValueError(f"packing {packing!r} is unknown: choose one of {', '.join(PACKINGS)}")
    kind = Concatenated if packing == "concatenate" else BestFit
    return [kind(corpus, sequence_length) for corpus in corpora]
