"""The future of a reader is known: shards of coming steps are fetched from afar before they are needed."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from ingot.data.corpus.shards import Corpus

STEPS_AHEAD = 16  # whose shards are fetched, beyond the step about to be read


class Ahead:
    """Goes through coming steps, each once, and asks the corpora for their shards, as long as few are on their way.

    `shards_of(cursor, stop)` names what this rank reads in a step, as (corpus, shard); steps have `size` slots.
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

    def look(self, cursor: int) -> None:
        """`cursor` is that of a step about to be read."""
        while self._remote:
            while self._shards:
                corpus, shard = self._shards[0]
                if not self.corpora[corpus].fetch_ahead(shard):
                    return
                self._shards.popleft()
            self._next = max(self._next, cursor)
            if self._next > cursor + STEPS_AHEAD * self.size or (self.stop is not None and self._next >= self.stop):
                return
            self._shards.extend(self.shards_of(self._next, self.stop))
            self._next += self.size
