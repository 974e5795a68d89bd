"""From corpora to the batches of one rank, in an order that no thread, rank count or restart can change.

A step reads the slots [cursor, cursor + global batch). Rank r of D reads the r-th of D equal, contiguous parts of
them. The cursor is the only state.

If the instance of a slot is damaged, the slot gets another instance of the same corpus. The candidates are a sequence
that depends only on (seed, corpus, epoch, instance), and the first readable one is taken. So the content of a slot is a
pure function of the slot and of the set of damaged bundles. A rank that finds damage uses the substitute at once and
does not ask the other ranks: with the same damage they would choose the same substitute. So the order is equal for
every layout, and no rank waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import numpy as np

from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.batch_sharding import check_batch_sizes, check_corpora
from ingot.data.loader.prefetch import ShardPrefetcher
from ingot.data.order.keyed_random import mix, permute
from ingot.data.order.order import Order
from ingot.data.order.windowed_shuffle import ShardWindows
from ingot.data.sequences.collator import Collator, Rows
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.sequences.options import SequenceOptions
from ingot.data.sequences.packings import make_packings
from ingot.data.tokenizers.tokenizer import Tokenizer

MAX_SUBSTITUTES = 100  # instances that are tried for one slot

# Numbers of random streams. The other streams: data/order/order.py and data/sequences/objectives.py.
_FINGERPRINT = 5
_SUBSTITUTE = 100

Slot = tuple[tuple[int, int, int], int, int]  # (corpus, shard, instance in the shard), epoch, instance in the corpus


class NoReadableData(ValueError):
    """A damaged instance has no substitute that can be read."""


@dataclass(frozen=True, kw_only=True)
class ReaderOptions(SequenceOptions):
    """What a reader gives out. All ranks of a run have the same options.

    Attributes:
        global_batch: sequences of one step, over all ranks.
        micro_batch: sequences of one forward pass on one rank.
        seed: of the order, the masks and all other random choices.
        shuffle: "full" or True, "window", or False; see data.order.order.Order.
        weights: one for each corpus; None mixes the corpora in proportion to their sizes.
        mixture_schedule: weights that change: (first slot, weights) pairs. They replace `weights`.
        window_shards: shards that are mixed with each other (shuffle "window").
        num_partitions: canonical partitions (shuffle "window"), see data/order/partitions.py.
        threads: threads that read ahead; with 0 each step is read when it is asked for.
        prefetch: steps that the threads read ahead, at most.
        strict: the first damage is an error. Without it, damage is an error only if no substitute can be read.
        errors: what to do on an error. "raise" raises it. "yield" gives a step without targets that carries the error,
            so that this rank still takes part in collective operations.

    `threads` and `prefetch` do not change what the reader gives out.
    """

    global_batch: int
    micro_batch: int
    seed: int
    shuffle: bool | str
    weights: Sequence[float] | None = None
    mixture_schedule: Sequence[tuple[int, Sequence[float]]] | None = None
    window_shards: int = 64
    num_partitions: int = 1
    threads: int = 2
    prefetch: int = 4
    strict: bool = True
    errors: Literal["raise", "yield"] = "raise"


@dataclass
class StepBatch:
    """One rank's part of one optimizer step.

    Each micro-batch holds `input_ids`, `labels`, `positions` (int64 [micro, L]) and `cu_seqlens` (int32 [segments + 1],
    over the micro * L tokens of all rows, one row after another; every row and every document begins a segment). With
    sentence pairs it also holds `token_types` (int64 [micro, L]) and `pair_labels` (int64 [micro]).
    """

    micro_batches: list[dict[str, np.ndarray]]
    num_targets: int  # labels that are not IGNORE_INDEX, in this rank's micro-batches
    fingerprint: int  # in [0, 2**64); the sum over ranks, mod 2**64, is the step's batch fingerprint
    num_tokens: int  # input tokens in this rank's micro-batches, without filler rows
    cursor: int  # slots that all ranks together have consumed after this step
    substituted: int = 0  # rows in this rank's micro-batches that replace damaged ones
    error: Exception | None = None  # why this rank could not read the step; then all its rows are filler rows


class Reader:
    """The batches of rank `rank` of `num_ranks` over a mixture of corpora.

    `error` is the first error that was met with `errors="yield"`.

    Raises:
        ValueError: the batch cannot be divided among the ranks (the message names sizes that can), a corpus was made
            with another tokenizer or has too few tokens for one sequence, or options do not fit together.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        tokenizer: Tokenizer,
        options: ReaderOptions,
        *,
        rank: int = 0,
        num_ranks: int = 1,
    ):
        check_batch_sizes(options.global_batch, options.micro_batch, num_ranks)
        check_corpora(corpora, tokenizer, options.sequence_length)
        assert 0 <= rank < num_ranks
        self.options, self.rank, self.num_ranks = options, rank, num_ranks
        self.corpora = list(corpora)
        self.error: Exception | None = None
        self._packings = make_packings(self.corpora, options.packing, options.sequence_length)
        self._instance_ends = [np.cumsum(packing.shard_instances) for packing in self._packings]
        sizes = [int(ends[-1]) for ends in self._instance_ends]
        self.num_instances = sum(sizes)
        windows = None
        if options.shuffle == "window":
            windows = [
                ShardWindows(
                    packing.shard_instances, options.window_shards, options.num_partitions, options.global_batch
                )
                for packing in self._packings
            ]
        self.order = Order(
            sizes,
            options.weights if options.weights is not None else sizes,
            options.seed,
            options.shuffle,
            segments=options.mixture_schedule,
            windows=windows,
        )
        partner_slots = options.global_batch // options.num_partitions if windows else self.num_instances
        self._collator = Collator(options, tokenizer, seed=options.seed, partner_slots=partner_slots)
        # Multilinear hashing: an odd random factor for each position, other factors for input ids than for labels.
        position = np.arange(options.sequence_length)
        self._factors = [mix(0, _FINGERPRINT, part, position) | np.uint64(1) for part in (0, 1)]
        self._closed = False
        self._running: list[ThreadPoolExecutor] = []

    def steps(
        self, cursor: int = 0, stop: int | None = None, size: int | None = None
    ) -> Generator[StepBatch, None, None]:
        """The steps from slot `cursor` on, without end or up to slot `stop`.

        Each step has `size` slots (None: `global_batch`). The number of ranks must divide `size`. The content of a slot
        does not depend on `size`.

        If the last step before `stop` is not full, filler rows (all labels IGNORE_INDEX) complete it. They count
        neither as tokens nor in the fingerprint. So every rank gets the same number of steps and micro-batches, and
        sums over targets stay exact.
        """
        size = size or self.options.global_batch
        check_batch_sizes(size, self.options.micro_batch, self.num_ranks)
        first_slots = count(cursor, size) if stop is None else iter(range(cursor, stop, size))
        prefetcher = ShardPrefetcher(self.corpora, partial(self.shards_of, size=size), cursor, stop, size)
        if not self.options.threads:
            for first in first_slots:
                prefetcher.advance(first)
                yield self._step(first, stop, size)
            return
        executor = ThreadPoolExecutor(self.options.threads, thread_name_prefix="reader")
        self._running.append(executor)
        waiting: deque[Future[StepBatch]] = deque()
        try:
            while True:
                while len(waiting) < max(1, self.options.prefetch):
                    begin = next(first_slots, None)
                    if begin is None:
                        break
                    prefetcher.advance(begin)
                    waiting.append(executor.submit(self._step, begin, stop, size))
                if not waiting:
                    return
                yield waiting.popleft().result()
                if self._closed:
                    return
        finally:
            executor.shutdown(wait=True, cancel_futures=True)
            self._running.remove(executor)

    def close(self) -> None:
        """Stop all threads. Iterators that are still in use end."""
        self._closed = True
        for executor in list(self._running):
            executor.shutdown(wait=True, cancel_futures=True)
        for corpus in self.corpora:
            corpus.close()

    def shards_of(self, cursor: int, stop: int | None, size: int) -> list[tuple[int, int]]:
        """The shards that this rank reads in the step at `cursor`: (corpus, shard) pairs, each once, in order.

        A shard counts if an instance begins in it. An instance that ends in the next shard reads only the beginning of
        that shard (data/sequences/packings.py)."""
        slots = self._slots(cursor, size)
        corpus, _, instance = self.order.locate(slots[slots < _end(cursor, stop, size)])
        return list(dict.fromkeys((k, shard) for k, shard, _ in self._locate_in_shards(corpus, instance)))

    def _slots(self, cursor: int, size: int) -> np.ndarray:
        """The slots of this rank in the step at `cursor`."""
        per_rank = size // self.num_ranks
        return cursor + self.rank * per_rank + np.arange(per_rank)

    def _step(self, cursor: int, stop: int | None, size: int) -> StepBatch:
        end = _end(cursor, stop, size)
        if self.options.errors == "raise":
            return self._read_step(cursor, end, size)
        try:
            return self._read_step(cursor, end, size)
        except Exception as error:
            self.error = self.error or error
            batch = self._read_step(cursor, 0, size)  # all rows are filler rows
            batch.cursor, batch.error = end, error
            return batch

    def _read_step(self, cursor: int, end: int, size: int) -> StepBatch:
        """This rank's part of the slots [cursor, cursor + size). Slots from `end` on get filler rows."""
        micro_size = self.options.micro_batch
        slots = self._slots(cursor, size)
        real = slots[slots < end]
        corpus, epoch, instance = self.order.locate(real)
        located = self._locate_in_shards(corpus, instance)
        real_slots: list[Slot] = list(zip(located, epoch.tolist(), instance.tolist(), strict=True))
        micro_batches, contents = [], []
        num_targets = substituted = 0
        for first in range(0, len(slots), micro_size):
            part = slice(first, first + micro_size)
            rows, replaced = self._read_rows(slots[part], real_slots[part])
            micro = self._collator(rows, partial(self._partner, slots[part], corpus[part]))
            micro_batches.append(micro)
            contents.append(self._hash_rows(micro)[: len(real_slots[part])])
            num_targets += micro["labels"].size - int(np.count_nonzero(micro["labels"] == IGNORE_INDEX))
            substituted += replaced
        return StepBatch(
            micro_batches=micro_batches,
            num_targets=num_targets,
            # A sum over rows: the rank and micro-batch of a row do not matter, but the position of a token in it does.
            fingerprint=int(mix(0, _FINGERPRINT, real, np.concatenate(contents)).sum(dtype=np.uint64)),
            num_tokens=len(real_slots) * self.options.sequence_length,
            cursor=end,
            substituted=substituted,
        )

    def _locate_in_shards(self, corpus: np.ndarray, instance: np.ndarray) -> list[tuple[int, int, int]]:
        """(corpus, shard, index of the instance in the shard) of each instance, as the corpus's packing counts them."""
        shard, index = np.empty_like(instance), np.empty_like(instance)
        for k in np.unique(corpus):
            mine = corpus == k
            ends = self._instance_ends[k]
            shard[mine] = found = np.searchsorted(ends, instance[mine], side="right")
            index[mine] = instance[mine] - np.where(found > 0, ends[found - 1], 0)
        return list(zip(corpus.tolist(), shard.tolist(), index.tolist(), strict=True))

    def _read_rows(self, slots: np.ndarray, real_slots: list[Slot]) -> tuple[Rows, int]:
        """The rows of `slots`, as the corpora store them, and how many of them are substitutes.

        `real_slots` belong to the first of `slots`; the other slots get filler rows."""
        tokens = np.full((len(slots), self._collator.row_length), self._collator.pad_id, dtype=self.corpora[0].dtype)
        begins = np.zeros(tokens.shape, dtype=bool)
        lengths = np.zeros(len(slots), dtype=np.int64)
        substituted = 0
        starts, shifts = [np.empty(0, dtype=np.int64)], [0]
        for row, ((corpus, shard, index), epoch, instance) in enumerate(real_slots):
            try:
                found = self._packings[corpus].read_into(tokens[row], shard, index)
            except DamagedShard:
                if self.options.strict:
                    raise
                tokens[row] = self._collator.pad_id
                found = self._read_substitute(tokens[row], corpus, epoch, instance)
                substituted += 1
            starts.append(found[0])
            shifts.append(found[1] - row * tokens.shape[1])
            lengths[row] = found[2]
        begins.ravel()[np.concatenate(starts) - np.repeat(shifts, [len(s) for s in starts])] = True
        return Rows(tokens, begins, lengths if self._collator.packed else None, slots, len(real_slots)), substituted

    def _read_substitute(
        self, tokens: np.ndarray, corpus: int, epoch: int, instance: int
    ) -> tuple[np.ndarray, int, int]:
        """`Packing.read_into` of the first readable instance among the substitutes of a damaged one.

        Each attempt has its own permutation of the corpus, so that a bundle's instances get different substitutes.
        """
        problem = None
        for attempt in range(MAX_SUBSTITUTES):
            key = int(mix(self.order.seed, _SUBSTITUTE, corpus, epoch, attempt)[0])
            size = int(self._instance_ends[corpus][-1])
            other = permute(np.array([instance], dtype=np.uint64), size, key).astype(np.int64)
            ((_, shard, index),) = self._locate_in_shards(np.array([corpus]), other)
            try:
                return self._packings[corpus].read_into(tokens, shard, index)
            except DamagedShard as error:
                problem = error
        raise NoReadableData(
            f"corpus {self.corpora[corpus].folder}, split {self.corpora[corpus].split}: a sequence is damaged, and so "
            f"are {MAX_SUBSTITUTES} substitutes for it (the last: {problem}). Copy or prepare the corpus again"
        )

    def _partner(self, slots: np.ndarray, corpora: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, starts) of the row that gives the second half of the pair of `row`.

        It is the first readable row of the same corpus among those that SentencePairs.partner names."""
        pairs, corpus = self._collator.pairs, int(corpora[row])
        assert pairs is not None
        for attempt in range(MAX_SUBSTITUTES):
            other = np.array([pairs.partner(int(slots[row]), attempt)])
            where, epoch, instance = self.order.locate(other)
            if int(where[0]) != corpus:
                continue
            located = self._locate_in_shards(where, instance)[0]
            try:
                rows, _ = self._read_rows(other, [(located, int(epoch[0]), int(instance[0]))])
            except DamagedShard:
                continue
            return rows.tokens[0], rows.starts[0]
        raise NoReadableData(
            f"corpus {self.corpora[corpus].folder}: no readable sequence for the second half of a sentence pair"
        )

    def _hash_rows(self, micro: dict[str, np.ndarray]) -> np.ndarray:
        """A hash of the content of each row, uint64 [rows]."""
        hashes = [
            np.vecdot(micro[name].view(np.uint64), factors)
            for name, factors in zip(("input_ids", "labels"), self._factors, strict=True)
        ]
        return hashes[0] + hashes[1]


def _end(cursor: int, stop: int | None, size: int) -> int:
    return cursor + size if stop is None else min(stop, cursor + size)
