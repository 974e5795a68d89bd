"""From the examples of a task to the batches of one rank: packed rows with about as many tokens on each rank.

The order is a pure function of the seed and the slot, as for corpora: slot n is one example of epoch n // examples. How
the examples of a step are packed into rows follows from their lengths, the ranks, and the most tokens of a row. It
changes the speed, never the sum of the losses.
"""

from __future__ import annotations

import heapq
from collections.abc import Generator, Iterator, Sequence

import numpy as np

from ingot.data.loader.reader import StepBatch
from ingot.data.order.keyed_random import mix, permute
from ingot.data.tasks.examples import Example, pack

_ORDER, _CONTENT = 301, 302  # streams of random numbers of their own; see data/order/order.py


class TaskReader:
    """Batches of `examples` for rank `rank` of `num_ranks`.

    Args:
        global_size: examples of a step over all ranks.
        micro_tokens: most tokens of a row; each rank has as many rows in a step as are needed for that.
        labels: the name that targets have in a micro-batch.
        shuffle: a new order in each epoch; otherwise that of the examples.
        token_types: whether the model has any.
        multiple: rows get an example without a loss that makes their number of tokens a multiple of it, as sequence
            parallelism over tensor ranks needs.

    Raises:
        ValueError: an example is longer than `micro_tokens`, or there are no examples.
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
        self.labels, self.seed, self.shuffle, self.token_types = labels, seed, shuffle, token_types
        self.multiple, self.rank, self.num_ranks = multiple, rank, num_ranks
        self._lengths = np.array([len(example.ids) for example in examples])
        longest = int(self._lengths.max())
        if longest > micro_tokens:
            raise ValueError(
                f"the longest example has {longest} tokens, and batch.micro_tokens is {micro_tokens}; raise it to "
                f"{longest} or more, or lower task.max_length"
            )
        self._content = _contents(examples)

    @property
    def fingerprint(self) -> str:
        """A hash of all examples in their order: 16 hex digits."""
        return _fingerprint(self._content)

    @property
    def num_instances(self) -> int:
        """Examples of an epoch."""
        return len(self.examples)

    def steps(
        self, cursor: int = 0, stop: int | None = None, size: int | None = None
    ) -> Generator[StepBatch, None, None]:
        """The steps from slot `cursor` on, without end or up to slot `stop`, of `size` slots each (by default
        `global_size`); the last may be smaller."""
        size = size or self.global_size
        while stop is None or cursor < stop:
            end = cursor + size if stop is None else min(stop, cursor + size)
            yield self._step(np.arange(cursor, end), end)
            cursor = end

    def batches(self) -> Iterator[tuple[dict[str, np.ndarray], list[int]]]:
        """This rank's micro-batches of one pass over all examples, each with the indices of its examples. All ranks
        have the same number of micro-batches; one that only fills up that number has no indices."""
        size = self.num_ranks * self.global_size * 8
        for start in range(0, len(self.examples), size):
            slots = np.arange(start, min(start + size, len(self.examples)))
            for row in self.rows(slots):
                indices = self.order(slots)[row].tolist()
                yield self._packed([self.examples[index] for index in indices], self.examples[start]), indices

    def close(self) -> None:
        """Does nothing: no file is open. The reader of corpora has it too."""

    def order(self, slots: np.ndarray) -> np.ndarray:
        """The index of the example of each slot."""
        count = len(self.examples)
        positions = slots % count  # in their epoch
        if not self.shuffle:
            return positions
        result = np.empty(len(slots), np.int64)
        for epoch in np.unique(slots // count):
            of_it = slots // count == epoch
            key = int(mix(self.seed, _ORDER, int(epoch))[0])
            result[of_it] = permute(positions[of_it].astype(np.uint64), count, key)
        return result

    def rows(self, slots: np.ndarray) -> list[np.ndarray]:
        """This rank's rows of a step, as indices into `slots`. All ranks have the same number of rows; some may be
        empty."""
        lengths = self._lengths[self.order(slots)]
        count = max(1, -(-int(lengths.sum()) // (self.num_ranks * self.micro_tokens)))
        while (rows := balance_rows(lengths, self.num_ranks * count, self.micro_tokens)) is None:
            count += 1
        return rows[self.rank :: self.num_ranks]

    def _step(self, slots: np.ndarray, end: int) -> StepBatch:
        chosen, rows = self.order(slots), self.rows(slots)
        micro_batches, num_targets, num_tokens, fingerprint = [], 0, 0, 0
        for row in rows:
            found = [self.examples[index] for index in chosen[row]]
            num_targets += sum(example.num_targets for example in found)
            num_tokens += sum(len(example.ids) for example in found)
            content = self._content[chosen[row]]
            fingerprint += int(mix(0, _CONTENT, slots[row], content).sum(dtype=np.uint64)) if len(row) else 0
            micro_batches.append(self._packed(found, self.examples[chosen[0]]))
        return StepBatch(micro_batches, num_targets, fingerprint % 2**64, num_tokens, end)

    def _packed(self, found: list[Example], other: Example) -> dict[str, np.ndarray]:
        # All ranks must take part: one without an example of its own computes another without a loss.
        found = found or [other.without_target()]
        if lacking := -sum(len(example.ids) for example in found) % self.multiple:
            while lacking < len(other.documents):
                lacking += self.multiple
            found = [*found, other.filler(lacking)]
        micro = pack(found, self.labels)
        if not self.token_types:
            del micro["token_types"]
        return micro


def balance_rows(lengths: np.ndarray, num_rows: int, most: int) -> list[np.ndarray] | None:
    """Assigns examples to rows of about equal length: the longest first, each to the row that is shortest so far (LPT,
    Graham 1969).

    Returns:
        For each row the indices of its examples, in order; None if a row would have more than `most` tokens.
    """
    heap = [(0, row) for row in range(num_rows)]
    rows: list[list[int]] = [[] for _ in range(num_rows)]
    for index in np.argsort(-lengths, kind="stable").tolist():
        filled, row = heap[0]
        if filled + lengths[index] > most:
            return None
        heapq.heapreplace(heap, (filled + int(lengths[index]), row))
        rows[row].append(index)
    return [np.array(sorted(row), np.int64) for row in rows]


def fingerprint(examples: Sequence[Example]) -> str:
    """A hash of all examples in their order: 16 hex digits."""
    return _fingerprint(_contents(examples))


def _fingerprint(contents: np.ndarray) -> str:
    return f"{int(mix(0, _CONTENT, np.arange(len(contents)), contents).sum(dtype=np.uint64)):016x}"


def _contents(examples: Sequence[Example]) -> np.ndarray:
    """A hash of each example."""
    factors = mix(0, _CONTENT, np.arange(max((len(each.ids) for each in examples), default=0))) | np.uint64(1)
    return np.array([_hash(example, factors) for example in examples], np.uint64)


def _hash(example: Example, factors: np.ndarray) -> int:
    """A multilinear hash of ids and target."""
    ids = (example.ids.astype(np.uint64) + np.uint64(1)) * factors[: len(example.ids)]
    target = np.ascontiguousarray(example.target).view(np.uint64).ravel()
    return int(mix(int(ids.sum(dtype=np.uint64)), _CONTENT, int(mix(0, _CONTENT, target).sum(dtype=np.uint64)))[0])
