"""The order of the data as a pure function: slot n -> (corpus, epoch, instance).

Nothing here keeps state or uses the random generator of a library (keyed_random.py): the order is the same on every
machine and with every version of every library. A golden test checks it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.data.order.keyed_random import as_uint64, mix, permute
from ingot.data.order.mixture import Mixture
from ingot.data.order.windowed_shuffle import ShardWindows, WindowShuffle

_ORDER = 1  # number of a random stream; the masks (data/sequences/objectives.py) use others
_SHUFFLES = {True: "full", False: None, "full": "full", "window": "window"}


class Order:
    """The order of a mixture of corpora.

    In every period the corpora appear exactly in proportion to their weights, and evenly spread: at any slot the number
    of instances of each corpus is right to within about one instance. Each epoch of a corpus has all its instances
    once.

    Ranks do not enter here. With window shuffle, P partitions and a global batch of G, slot n belongs to partition
    (n mod G) * P // G. Rank r of D reads the slots [r G / D, (r + 1) G / D) of each global batch. With D = P this is
    one partition, and so a P-th of the shards per epoch.

    Args:
        num_instances: instances of each corpus.
        weights: weight of each corpus.
        shuffle: "full" or True gives each epoch a new random order of all instances. "window" gives it an order that
            reads only a few shards at a time. False keeps the order of the corpus.
        segments: weights that change, as (first slot, weights) pairs. They replace `weights`. Proportions are exact
            from the start of each segment. Each corpus continues where it was: its epochs stay whole. A weight may be
            0 in some of the segments.
        windows: one for each corpus, for shuffle "window".

    Raises:
        ValueError: weights, windows and numbers of instances that do not fit together.
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
            raise ValueError(f"every corpus of a mixture needs at least one instance, they have {num_instances}")
        if shuffle not in _SHUFFLES:
            raise ValueError(f"shuffle {shuffle!r} is unknown: choose full, window or false")
        self.num_instances = np.array(num_instances, dtype=np.int64)
        self.mixture = Mixture(segments, len(num_instances))
        self.seed, self.shuffle = seed, _SHUFFLES[shuffle]
        self._windows = None
        if self.shuffle == "window":
            windows = windows or []
            counts = [int(np.sum(w.shard_instances)) for w in windows]
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
        # One permutation for each corpus and epoch; a batch rarely has more than a few of them.
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
