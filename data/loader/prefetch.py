"""Downloads the shards of coming steps before the reader needs them: the order says which shards these are."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ingot.data.corpus.shards import Corpus

STEPS_AHEAD = 16  # steps after the current one whose shards are downloaded


class ShardPrefetcher:
    """Asks the corpora for the shards of coming steps, each step once, while few downloads are running.

    Args:
        shards_of: `shards_of(cursor, stop)` gives the (corpus, shard) pairs that this rank reads in a step.
        size: slots of a step.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        shards_of: Callable[[int, int | None], list[tuple[int, int]]],
        cursor: int,
        stop: int | None,
        size: int,
    ):
        self.corpora, self.shards_of, self.stop, self.size = corpora, shards_of, stop, size
        self._next = cursor
        self._shards: deque[tuple[int, int]] = deque()
        self._remote = any(corpus.cache is not None for corpus in corpora)

    def advance(self, cursor: int) -> None:
        """Call this before the step at `cursor` is read."""
        while self._remote:
            while self._shards:
                corpus, shard = self._shards[0]
                if not self.corpora[corpus].prefetch_shard(shard):
                    return
                self._shards.popleft()
            self._next = max(self._next, cursor)
            if self._next > cursor + STEPS_AHEAD * self.size or (self.stop is not None and self._next >= self.stop):
                return
            self._shards.extend(self.shards_of(self._next, self.stop))
            self._next += self.size
