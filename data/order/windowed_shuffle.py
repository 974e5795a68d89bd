"""Windowed shuffle: a random order that reads only a few shards at a time, for shards on remote storage.

Each epoch permutes the shards of a corpus. Their instances, shard after shard, are the sequence of the epoch. It is
divided into ranges, one for each canonical partition (partitions.py). A range is as long as the number of slots of its
partition in that epoch, so each instance appears exactly once per epoch, with no remainder. A range is divided into
windows of `window_shards` shards, and instances are permuted inside each window. So a partition reads its own part of
the shards, one window after the other. Only the shard at the border of two ranges belongs to two partitions. An
instance that ends in the next shard of the corpus reads only the beginning of that shard.

With one partition, a change of weights at a slot leaves everything before that slot as it was. With more partitions,
the ranges of the current epoch depend on its later slots too: set all segments of weights before the run starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ingot.data.order.keyed_random import mix, permute, permute_groups
from ingot.data.order.mixture import Mixture
from ingot.data.order.partitions import PartitionCounts, partition_of

_SHARDS, _WINDOW = 20, 21  # numbers of random streams


@dataclass(frozen=True)
class ShardWindows:
    """How one corpus is shuffled by windows.

    Attributes:
        shard_instances: instances of each shard, in the order of the corpus.
        window_shards: shards that are mixed with each other.
        num_partitions: the same for all corpora.
        global_batch: slots of a step over all ranks; it is divided among the partitions.

    Raises:
        ValueError: a number below 1, or partitions that do not divide the global batch.
    """

    shard_instances: Sequence[int] | np.ndarray
    window_shards: int
    num_partitions: int = 1
    global_batch: int = 1

    def __post_init__(self) -> None:
        if self.window_shards < 1:
            raise ValueError(f"window_shards must be at least 1, is {self.window_shards}")
        if self.num_partitions < 1:
            raise ValueError(f"num_partitions must be at least 1, is {self.num_partitions}")
        if self.global_batch < 1 or self.global_batch % self.num_partitions:
            divisors = [p for p in range(1, self.global_batch + 1) if self.global_batch % p == 0]
            below = [p for p in divisors if p <= self.num_partitions]
            above = [p for p in divisors if p > self.num_partitions]
            near = below[-1:] + above[:1]
            raise ValueError(
                f"{self.num_partitions} partitions do not divide the global batch of {self.global_batch}: use "
                f"{' or '.join(map(str, near))}"
            )


@dataclass(frozen=True)
class _Epoch:
    """One epoch of a corpus: its sequence of instances, with the shards in the epoch's order."""

    ends: np.ndarray  # [shards]: where each shard ends in the sequence
    origin: np.ndarray  # [shards]: number of an instance in the corpus minus its position in the sequence
    ranges: np.ndarray  # [partitions + 1]: borders of the partitions' ranges
    first: np.ndarray  # [partitions]: index of the shard in which each range begins
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
        # A batch has one or two epochs of each corpus, and threads that read ahead may be in the next one.
        self._epoch = lru_cache(maxsize=3 * len(windows))(self._make_epoch)

    def locate(self, slots: np.ndarray, corpus: int, epoch: int, offset: np.ndarray) -> np.ndarray:
        """The instances of `slots` (int64) of one corpus and epoch; slots[i] is the offset[i]-th of that epoch."""
        order = self._epoch(corpus, epoch)
        if self._counts is None:
            partition, position = np.zeros_like(slots), offset
        else:
            partition = partition_of(slots, self.num_partitions, self.global_batch)
            position = self._counts.count(corpus, partition, slots) - order.passed[partition]
            position += order.ranges[partition]
        width, last = self._window_shards[corpus], len(order.ends) - 1
        window = (np.searchsorted(order.ends, position, side="right") - order.first[partition]) // width
        names, group = np.unique(np.stack([partition, window]), axis=1, return_inverse=True)
        p, w = names
        left = order.first[p] + w * width  # the window's first shard
        begin = np.where(left > 0, order.ends[left - 1], 0)
        begin = np.maximum(begin, order.ranges[p])
        end = np.minimum(order.ends[np.minimum(left + width - 1, last)], order.ranges[p + 1])
        keys = mix(self._seed, _WINDOW, corpus, epoch, p, w)
        group = group.reshape(-1)
        inside = permute_groups((position - begin[group]).astype(np.uint64), group, end - begin, keys)
        position = begin[group] + inside.astype(np.int64)
        return position + order.origin[np.searchsorted(order.ends, position, side="right")]

    def _make_epoch(self, corpus: int, epoch: int) -> _Epoch:
        sizes, total = self._sizes[corpus], self._totals[corpus]
        key = int(mix(self._seed, _SHARDS, corpus, epoch)[0])
        shard = permute(np.arange(len(sizes), dtype=np.uint64), len(sizes), key).astype(np.int64)
        ends = np.cumsum(sizes[shard])
        origin = (np.cumsum(sizes) - sizes)[shard] - (ends - sizes[shard])
        ranges, passed = np.array([0, total]), np.zeros(1, dtype=np.int64)
        if self._counts is not None:
            every = np.arange(self.num_partitions)
            begin, last = (self._mixture.slot(corpus, n) for n in (epoch * total, (epoch + 1) * total - 1))
            assert begin is not None, "an epoch that is never reached"
            # If the weight stays 0 and the end is never reached, the epoch has only the slots before that.
            end = last + 1 if last is not None else max(int(self._mixture.starts[-1]), begin)
            passed = self._counts.count(corpus, every, np.full_like(every, begin))
            lengths = self._counts.count(corpus, every, np.full_like(every, end)) - passed
            ranges = np.append(0, np.cumsum(lengths))
        first = np.searchsorted(ends, ranges[:-1], side="right")
        return _Epoch(ends, origin, ranges, first, passed)
