"""From the examples of a task to the batches of one rank: packed rows of about as many tokens on each rank.

The order is a pure function of the seed and the slot, as for corpora: slot n is one example of epoch n // examples. How
the examples of a step are laid into rows follows from their lengths, the ranks, and the most tokens of a row; it
changes speed, never the sum of the losses.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np

from ingot.data.loader.reader import StepBatch
from ingot.data.order.keyed_random import mix, permute
from ingot.data.tasks.examples import Example, pack

_ORDER, _CONTENT = 301, 302  # streams of random numbers of their own; see data/order/order.py


class TaskReader:
    """Batches of `examples` for rank `rank` of `num_ranks`.

    Args:
        global_size: examples of a step over all ranks.
        micro_tokens: most tokens of a row; a step has as many rows on each rank as that takes.
        labels: the name that targets have in a micro-batch.
        shuffle: a new order in each epoch; otherwise that of the examples.
        token_types: whether the model has any.
        multiple: rows get an example without a loss that makes their tokens a multiple of it, as tensor ranks need.

    Raises:
        ValueError: an example that is longer than `micro_tokens`, or none at all.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        global_size: int,
        micro_tokens: int,
        labels: str,
        seed: int = 0,
        shuffle: bool = True,
        token_types: bool = True,
        multiple: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        if not examples:
            raise ValueError("there are no examples")
        self.examples, self.global_size, self.micro_tokens = examples, global_size, micro_tokens
        self.labels, self.seed, self.shuffle, self.type_vocab_size = labels, seed, shuffle, token_types
        self.multiple, self.rank, self.num_ranks = multiple, rank, num_ranks
        self._lengths = np.array([len(example.ids) for example in examples])
        longest = int(self._lengths.max())
        if longest > micro_tokens:
            raise ValueError(
                f"the longest example has {longest} tokens, and batch.micro_tokens is {micro_tokens}; raise it to "
                f"{longest} or more, or lower task.max_length"
            )
        factors = mix(0, _CONTENT, np.arange(longest)) | np.uint64(1)
        self._content = np.array([_hash(example, factors) for example in examples], np.uint64)

    @property
    def fingerprint(self) -> str:
        """What the examples are, in order: 16 hex digits."""
        return f"{int(mix(0, _CONTENT, np.arange(len(self._content)), self._content).sum(dtype=np.uint64)):016x}"

    @property
    def num_instances(self) -> int:
        """Examples of an epoch."""
        return len(self.examples)

    def steps(self, cursor: int = 0, stop: int | None = None, size: int | None = None) -> Iterator[StepBatch]:
        """The steps from slot `cursor` on, for ever or up to slot `stop`, of `size` slots each (`global_size`); the
        last may be smaller."""
        size = size or self.global_size
        while stop is None or cursor < stop:
            end = cursor + size if stop is None else min(stop, cursor + size)
            yield self._step(np.arange(cursor, end), end)
            cursor = end

    def batches(self) -> Iterator[tuple[dict[str, np.ndarray], list[int]]]:
        """This rank's micro-batches of one pass over all examples, each with the numbers of its examples. All ranks
        have as many; one that is only there for that has no numbers."""
        size = self.num_ranks * self.global_size * 8
        for start in range(0, len(self.examples), size):
            slots = np.arange(start, min(start + size, len(self.examples)))
            for places in self.rows(slots):
                numbers = self.order(slots)[places].tolist()
                yield self._packed([self.examples[number] for number in numbers], self.examples[start]), numbers

    def close(self) -> None:
        """Nothing is open; here as for corpora."""

    def order(self, slots: np.ndarray) -> np.ndarray:
        """The number of the example of each slot."""
        count = len(self.examples)
        places = slots % count
        if not self.shuffle:
            return places
        result = np.empty(len(slots), np.int64)
        for epoch in np.unique(slots // count):
            of_it = slots // count == epoch
            key = int(mix(self.seed, _ORDER, int(epoch))[0])
            result[of_it] = permute(places[of_it].astype(np.uint64), count, key)
        return result

    def rows(self, slots: np.ndarray) -> list[np.ndarray]:
        """This rank's rows of a step, as places in `slots`; all ranks have as many, and some may be empty."""
        lengths = self._lengths[self.order(slots)]
        count = max(1, -(-int(lengths.sum()) // (self.num_ranks * self.micro_tokens)))
        while (dealt := deal(lengths, self.num_ranks * count, self.micro_tokens)) is None:
            count += 1
        return dealt[self.rank :: self.num_ranks]

    def _step(self, slots: np.ndarray, end: int) -> StepBatch:
        chosen, rows = self.order(slots), self.rows(slots)
        micro_batches, num_targets, num_tokens, fingerprint = [], 0, 0, 0
        for places in rows:
            found = [self.examples[chosen[place]] for place in places]
            num_targets += sum(example.num_targets for example in found)
            num_tokens += sum(len(example.ids) for example in found)
            content = self._content[chosen[places]]
            fingerprint += int(mix(0, _CONTENT, slots[places], content).sum(dtype=np.uint64)) if len(places) else 0
            micro_batches.append(self._packed(found, self.examples[chosen[0]]))
        return StepBatch(micro_batches, num_targets, fingerprint % 2**64, num_tokens, end)

    def _packed(self, found: list[Example], other: Example) -> dict[str, np.ndarray]:
        # A rank without an example of its own computes one for nothing, as all ranks must take part.
        found = found or [other.without_target()]
        if lacking := -sum(len(example.ids) for example in found) % self.multiple:
            while lacking < len(other.documents):
                lacking += self.multiple
            found = [*found, other.filler(lacking)]
        micro = pack(found, self.labels)
        if not self.type_vocab_size:
            del micro["token_types"]
        return micro


def deal(lengths: np.ndarray, num_rows: int, most: int) -> list[np.ndarray] | None:
    """Deals examples into rows of about equal length: the longest first, each to the row that has least (LPT, Graham
    1969). For each row the places of its examples, in order; None where a row would have more than `most` tokens."""
    heap = [(0, row) for row in range(num_rows)]
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    for place in np.argsort(-lengths, kind="stable").tolist():
        filled, row = heap[0]
        if filled + lengths[place] > most:
            return None
        heapq.heapreplace(heap, (filled + int(lengths[place]), row))
        rows[row].append(place)
    return [np.array(sorted(row), np.int64) for row in rows]


def _hash(example: Example, factors: np.ndarray) -> int:
    """Of ids and target, by multilinear hashing."""
    ids = (example.ids.astype(np.uint64) + np.uint64(1)) * factors[: len(example.ids)]
    target = np.ascontiguousarray(example.target).view(np.uint64).ravel()
    return int(mix(int(ids.sum(dtype=np.uint64)), _CONTENT, int(mix(0, _CONTENT, target).sum(dtype=np.uint64)))[0])
