"""The order of the data as a pure function: slot n -> (corpus, epoch, instance).

Nothing here keeps state, and nothing depends on a library's random generator (keyed_random.py): the order is the same
on every machine, for every version of every library. A golden test watches over it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.data.order.keyed_random import as_uint64, mix, permute
from ingot.data.order.mixture import Mixture
from ingot.data.order.windowed_shuffle import ShardWindows, WindowShuffle

_ORDER = 1  # keeps the streams of random numbers for order and for masks (data/sequences/objectives.py) apart
_SHUFFLES = {True: "full", False: None, "full": "full", "window": "window"}


class Order:
    """The order of a mixture of corpora with `num_instances[k]` instances and `weights[k]` each.

    In every period the corpora appear exactly in proportion, evenly spread: at any slot each has had its share to
    within about one instance. Each epoch of a corpus takes all its instances once.

    `shuffle`: "full" or True takes each epoch in a new random order of all instances; "window" in one that has only a
    few shards under way at a time, as `windows` says, one for each corpus; False in the corpus's own.

    `segments`, a list of (first slot, weights), gives weights that change at slots, and stands in for `weights`, which
    may then be None. Proportions are exact from the start of each segment. Each corpus goes on where it was, so that
    its epochs stay whole. A weight may be 0 in a segment, though not in all.

    Ranks: with window shuffle, P partitions and a global batch of G, slot n belongs to partition (n mod G) * P // G.
    Rank r of D reads the slots [r G / D, (r + 1) G / D) of each global batch: with D = P just one partition, and thus
    a P-th of the shards per epoch. Nothing about ranks enters here.

    Raises ValueError for weights, windows and numbers of instances that do not fit together.
    """

    def __init__(
        self,
        num_instances: Sequence[int],
        weights: Sequence[float] | None,
        seed: int,
        shuffle: bool | str,
        *,
        segments: Sequence[tuple[int, Sequence[float]]] | None = None,
        windows: Sequence[ShardWindows] | None = None,
    ):
        if segments is None:
            if weights is None or len(num_instances) != len(weights):
                raise ValueError(f"{len(num_instances)} corpora but {0 if weights is None else len(weights)} weights")
            segments = [(0, weights)]
        if any(n < 1 for n in num_instances):
            raise ValueError(f"every corpus of a mixture needs at least one instance, have {num_instances}")
        if shuffle not in _SHUFFLES:
            raise ValueError(f"shuffle {shuffle!r} is unknown: choose full, window or false")
        self.num_instances = np.array(num_instances, dtype=np.int64)
        self.mixture = Mixture(segments, len(num_instances))
        self.seed, self.shuffle = seed, _SHUFFLES[shuffle]
        self._windows = None
        if self.shuffle == "window":
            counts = [int(np.sum(w.shard_instances)) for w in windows or ()]
            if counts != list(num_instances):
                raise ValueError(f"window shuffle: shards of {counts} instances for corpora of {list(num_instances)}")
            self._windows = WindowShuffle(windows, self.mixture, seed)

    @property
    def quotas(self) -> np.ndarray:
        """Slots of each corpus in one period of the first segment."""
        return self.mixture.tables[0].quotas

    @property
    def period(self) -> int:
        return self.mixture.tables[0].period

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(corpus, epoch, instance), each int64 with the length of `slots` (integers in [0, 2^63))."""
        slots = as_uint64(slots).astype(np.int64)
        corpus, ordinal = self.mixture.locate(slots)
        epoch, instance = np.divmod(ordinal, self.num_instances[corpus])
        if self.shuffle is None:
            return corpus, epoch, instance
        # One permutation per corpus and epoch; a batch rarely meets more than a few.
        group = epoch * len(self.num_instances) + corpus
        for number in np.unique(group):
            mine = group == number
            e, k = divmod(int(number), len(self.num_instances))
            if self._windows is not None:
                instance[mine] = self._windows.locate(slots[mine], k, e, instance[mine])
            else:
                key = int(mix(self.seed, _ORDER, k, e)[0])
                instance[mine] = permute(instance[mine], int(self.num_instances[k]), key)
        return corpus, epoch, instance
