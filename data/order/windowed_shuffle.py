"""Windowed shuffle: random order with only a few shards under way at a time, for shards that lie far away.

Each epoch permutes the shards of a corpus and lays them end to end in a line of instances. The line is cut into pieces,
one for each canonical partition (partitions.py); a piece is as long as the number of slots of its partition in
that epoch, so that each instance comes exactly once per epoch, with no remainder. A piece is cut into windows of
`window_shards` shards, and instances are permuted inside each window. So a partition goes through its own part of the
shards, a window at a time; only the shards at the cuts belong to two partitions, at most one per cut. An instance
that ends in the shard after its own, in the corpus's order, reads the beginning of that one in passing.

With one partition, weights that are changed from some slot on leave everything before that slot as it was. With more,
the pieces of the epoch under way depend on its later slots too: fix all segments of weights before the run starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ingot.data.order.keyed_random import mix, permute, permute_groups
from ingot.data.order.mixture import Mixture
from ingot.data.order.partitions import PartitionCounts, partition_of

_SHARDS, _WINDOW = 20, 21  # streams of random numbers of their own


@dataclass(frozen=True)
class ShardWindows:
    """How one corpus is shuffled by windows. Raises ValueError for numbers that do not fit.

    `shard_instances` are the instances of each shard, in the order in which the corpus numbers them.
    """

    shard_instances: Sequence[int]
    window_shards: int  # shards that are mixed with each other
    num_partitions: int = 1  # the same for all corpora
    global_batch: int = 1  # slots of a step over all ranks; the partitions share it out

    def __post_init__(self):
        if self.window_shards < 1:
            raise ValueError(f"window_shards must be at least 1, is {self.window_shards}")
        if self.num_partitions < 1:
            raise ValueError(f"num_partitions must be at least 1, is {self.num_partitions}")
        if self.global_batch < 1 or self.global_batch % self.num_partitions:
            divisors = [p for p in range(1, self.global_batch + 1) if self.global_batch % p == 0]
            near = [p for p in divisors if p <= self.num_partitions][-1:] + [
                p for p in divisors if p > self.num_partitions
            ][:1]
            raise ValueError(
                f"{self.num_partitions} partitions do not divide the global batch of {self.global_batch}: use "
                f"{' or '.join(map(str, near))}"
            )


@dataclass(frozen=True)
class _Layout:
    """One epoch of a corpus as a line of instances."""

    shard: np.ndarray  # the shards in this epoch's order
    ends: np.ndarray  # where each of them ends in the line
    origin: np.ndarray  # instance number minus place in the line, for each of them
    cuts: np.ndarray  # [partitions + 1]: the pieces
    first: np.ndarray  # [partitions]: the place among `shard` of the shard that each piece begins in
    passed: np.ndarray  # [partitions]: slots of the corpus and partition before the epoch


class WindowShuffle:
    """The instance of each slot under windowed shuffle."""

    def __init__(self, windows: Sequence[ShardWindows], mixture: Mixture, seed: int):
        """Raises ValueError when the corpora differ in partitions or global batch."""
        divisions = {(w.num_partitions, w.global_batch) for w in windows}
        if len(divisions) != 1:
            raise ValueError(f"all corpora need the same (num_partitions, global_batch), have {sorted(divisions)}")
        ((self.num_partitions, self.global_batch),) = divisions
        self._mixture, self._seed = mixture, seed
        self._counts = None
        if self.num_partitions > 1:
            self._counts = PartitionCounts(mixture, self.num_partitions, self.global_batch)
        self._window_shards = [w.window_shards for w in windows]
        self._sizes = [np.asarray(w.shard_instances, dtype=np.int64) for w in windows]
        self._totals = [int(sizes.sum()) for sizes in self._sizes]
        # A batch meets one or two epochs of each corpus, and threads ahead of it may have reached the next.
        self._layout = lru_cache(maxsize=3 * len(windows))(self._lay_out)

    def locate(self, slots: np.ndarray, corpus: int, epoch: int, offset: np.ndarray) -> np.ndarray:
        """Instances of `slots` (int64), which belong to one corpus and epoch, as the offset[i]-th of that epoch."""
        layout = self._layout(corpus, epoch)
        if self._counts is None:
            partition, place = np.zeros_like(slots), offset
        else:
            partition = partition_of(slots, self.num_partitions, self.global_batch)
            place = self._counts.count(corpus, partition, slots) - layout.passed[partition]
            place += layout.cuts[partition]
        width, last = self._window_shards[corpus], len(layout.ends) - 1
        window = (np.searchsorted(layout.ends, place, side="right") - layout.first[partition]) // width
        names, group = np.unique(np.stack([partition, window]), axis=1, return_inverse=True)
        p, w = names
        left = layout.first[p] + w * width  # the window's first shard
        begin = np.where(left > 0, layout.ends[left - 1], 0)
        begin = np.maximum(begin, layout.cuts[p])
        end = np.minimum(layout.ends[np.minimum(left + width - 1, last)], layout.cuts[p + 1])
        keys = mix(self._seed, _WINDOW, corpus, epoch, p, w)
        group = group.reshape(-1)
        inside = permute_groups((place - begin[group]).astype(np.uint64), group, end - begin, keys)
        place = begin[group] + inside.astype(np.int64)
        return place + layout.origin[np.searchsorted(layout.ends, place, side="right")]

    def _lay_out(self, corpus: int, epoch: int) -> _Layout:
        sizes, total = self._sizes[corpus], self._totals[corpus]
        key = int(mix(self._seed, _SHARDS, corpus, epoch)[0])
        shard = permute(np.arange(len(sizes), dtype=np.uint64), len(sizes), key).astype(np.int64)
        ends = np.cumsum(sizes[shard])
        origin = (np.cumsum(sizes) - sizes)[shard] - (ends - sizes[shard])
        cuts, passed = np.array([0, total]), np.zeros(1, dtype=np.int64)
        if self._counts is not None:
            every = np.arange(self.num_partitions)
            begin, last = (self._mixture.slot(corpus, n) for n in (epoch * total, (epoch + 1) * total - 1))
            assert begin is not None, "an epoch that is never reached"
            # An epoch whose end never comes, because the weight stays 0, has no more slots than came before that.
            end = last + 1 if last is not None else max(int(self._mixture.starts[-1]), begin)
            passed = self._counts.count(corpus, every, np.full_like(every, begin))
            lengths = self._counts.count(corpus, every, np.full_like(every, end)) - passed
            cuts = np.append(0, np.cumsum(lengths))
        first = np.searchsorted(ends, cuts[:-1], side="right")
        return _Layout(shard, ends, origin, cuts, first, passed)
