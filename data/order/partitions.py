"""Canonical partitions: a fixed division of every global batch, so that a node does not have to read every shard.

With P partitions and a global batch of G slots, slot n belongs to partition (n mod G) * P // G: each global batch is
divided into P equal, contiguous parts. Rank r of D takes the r-th of D contiguous parts of the same batch. So it reads
from partition p only if the intervals [r/D, (r+1)/D) and [p/P, (p+1)/P) overlap: from P/D partitions if D divides P,
from one if P divides D. P belongs to the configuration, not to the cluster: another number of ranks changes which rank
reads a slot, and never its content.
"""

from __future__ import annotations

import math

import numpy as np

from ingot.data.order.mixture import Mixture

MAX_COUNTS = 4_000_000  # numbers in the tables, 8 bytes each


def partition_of(slots: np.ndarray, num_partitions: int, global_batch: int) -> np.ndarray:
    return slots % global_batch * num_partitions // global_batch


class PartitionCounts:
    """How many of the slots before n belong to a given corpus and partition: exactly, in O(1).

    The pattern of corpora repeats after the mixture's period, and the pattern of partitions after a global batch. The
    table has cumulative counts until both repeat. A segment of weights may begin inside a batch.
    """

    def __init__(self, mixture: Mixture, num_partitions: int, global_batch: int):
        self.mixture, self.num_partitions, self.global_batch = mixture, num_partitions, global_batch
        self._part = global_batch // num_partitions
        cycles = [table.period // math.gcd(table.period, global_batch) for table in mixture.tables]
        num_corpora = mixture.before.shape[1]
        size = sum(cycles) * num_corpora * num_partitions
        if size > MAX_COUNTS:
            raise ValueError(
                f"{num_partitions} partitions with a global batch of {global_batch} and {num_corpora} corpora need a "
                f"table of {size} numbers, more than {MAX_COUNTS}: use a global batch that is divisible by a larger "
                f"power of two, or fewer partitions"
            )
        self._sums = [self._accumulate(s, cycle) for s, cycle in enumerate(cycles)]
        before = np.zeros((num_corpora, num_partitions), dtype=np.int64)
        corpus, partition = np.arange(num_corpora)[:, None], np.arange(num_partitions)
        self._before = []  # for each segment: what to add to the count inside it
        for s, start in enumerate(mixture.starts):
            self._before.append(before - self._count_inside(s, corpus, partition, start))
            if s + 1 < len(mixture.starts):
                before = self._before[s] + self._count_inside(s, corpus, partition, mixture.starts[s + 1])

    def _accumulate(self, s: int, cycle: int) -> np.ndarray:
        """[corpora, cycle + 1, partitions]: slots in the first 0, 1, ... batches, from the batch in which segment s
        begins, as if its weights held in that whole batch."""
        start, G = int(self.mixture.starts[s]), self.global_batch
        batches = start // G + np.arange(cycle)
        edges = batches[:, None] * G + np.arange(self.num_partitions + 1) * self._part - start
        num_corpora = self.mixture.before.shape[1]
        result = np.zeros((num_corpora, cycle + 1, self.num_partitions), dtype=np.int64)
        for k in range(num_corpora):
            np.cumsum(np.diff(self.mixture.tables[s].count(k, edges), axis=1), axis=0, out=result[k, 1:])
        return result

    def _count_inside(
        self, s: int, corpus: int | np.ndarray, partition: np.ndarray, slots: int | np.ndarray
    ) -> np.ndarray:
        start, sums, table = int(self.mixture.starts[s]), self._sums[s], self.mixture.tables[s]
        batch = slots // self.global_batch
        cycles, rest = np.divmod(batch - start // self.global_batch, sums.shape[1] - 1)
        low = batch * self.global_batch + partition * self._part
        inside = np.clip(slots, low, low + self._part)
        part = table.count(corpus, inside - start) - table.count(corpus, low - start)
        return cycles * sums[corpus, -1, partition] + sums[corpus, rest, partition] + part

    def count(self, corpus: int, partition: np.ndarray, slots: np.ndarray) -> np.ndarray:
        """How many of the slots [0, slots[i]) belong to `corpus` and partition[i]."""
        result = np.empty(np.broadcast(partition, slots).shape, dtype=np.int64)
        partition, slots = np.broadcast_to(partition, result.shape), np.broadcast_to(slots, result.shape)
        segment = self.mixture.segment(slots)
        for s in np.unique(segment):
            mine = segment == s
            p = partition[mine]
            result[mine] = self._before[s][corpus, p] + self._count_inside(s, corpus, p, slots[mine])
        return result
