"""From corpora to the batches of one rank, in an order that no thread, rank count or restart can change.

Step after step, the slots [cursor, cursor + global batch) are shared out: rank r of D takes the r-th of D equal,
contiguous parts. The cursor is all there is to remember.

A slot whose instance is damaged gets another instance of the same corpus: the first sound one of a sequence that
follows from (seed, corpus, epoch, instance) alone. What a slot holds is thus a pure function of the slot and of which
bundles are damaged. A damage counts on the rank that sees it from that moment on, without asking the others: the same
damage would make every other rank choose the same, so the order is equal for every layout, and no rank waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Literal

import numpy as np

from ingot.data.corpus.quarantine import DamagedShard
from ingot.data.corpus.shards import Corpus
from ingot.data.loader.batch_sharding import check_corpora, check_sharing
from ingot.data.loader.prefetch import Ahead
from ingot.data.order.keyed_random import mix, permute
from ingot.data.order.order import Order
from ingot.data.order.windowed_shuffle import ShardWindows
from ingot.data.sequences.examples import ExampleMaker, Objective, Rows
from ingot.data.sequences.instances import make_layouts
from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tokenizers.tokenizer import Tokenizer

MAX_SUBSTITUTES = 100  # instances that are tried for one slot

_FINGERPRINT = 5  # streams of random numbers of their own; see data/order/order.py and data/sequences/objectives.py
_SUBSTITUTE = 100


class NoSoundData(ValueError):
    """None of the instances that could stand in for a damaged one can be read."""


@dataclass
class StepBatch:
    """One rank's part of one optimizer step.

    Each micro-batch holds `input_ids`, `labels`, `positions` (int64 [micro, L]) and `cu_seqlens` (int32 [segments + 1],
    over the micro * L tokens laid end to end; every row and every document begins a segment), and with sentence pairs
    `token_types` (int64 [micro, L]) and `pair_labels` (int64 [micro]).
    """

    micro_batches: list[dict[str, np.ndarray]]
    num_targets: int  # labels that are not IGNORE_INDEX, in this rank's micro-batches
    fingerprint: int  # in [0, 2**64); the sum over ranks, mod 2**64, is the step's batch fingerprint
    num_tokens: int  # input tokens in this rank's micro-batches, rows that only fill up left out
    cursor: int  # slots consumed, by all ranks, once this step is done
    substituted: int = 0  # rows in this rank's micro-batches that stand in for damaged ones
    error: Exception | None = None  # this rank cannot read the step: all its rows only fill up


class Reader:
    """Batches of a mixture of corpora for rank `rank` of `num_ranks`.

    `global_batch` and `micro_batch` count sequences: of a step over all ranks, and of one forward pass on one rank.
    `threads` read ahead, at most `prefetch` steps; neither changes what comes out, and with 0 threads each step is read
    when it is asked for. `weights` None mixes the corpora by their sizes; `segments` lets them change at slots.
    `shuffle`, `window_shards` and `num_partitions` are those of data.order and data.windows, `packing` one of
    data.layouts; `objective`, `mlm_probability`, `mask_unit`, `pairs` and `fim_rate` are data.examples.Objective.

    With `strict` the first damage is an error; without, it is an error only when nothing sound is found instead.
    `errors` says what happens on any error: `raise` it, or `yield` a step of rows without targets that carries it, so
    that this rank still takes part in what all ranks do together; the first one stays in `error`.

    Raises ValueError, naming numbers that would do, when the batch cannot be shared out; when a corpus has another
    tokenizer than the one given, or too few tokens for one sequence; and for an unknown objective.
    """

    def __init__(
        self,
        corpora: Sequence[Corpus],
        weights: Sequence[float] | None,
        *,
        sequence_length: int,
        objective: str,
        tokenizer: Tokenizer,
        seed: int,
        shuffle: bool | str,
        global_batch: int,
        micro_batch: int,
        mlm_probability: float = 0.15,
        mask_unit: str = "token",
        pairs: str = "none",
        fim_rate: float = 0.0,
        packing: str = "concatenate",
        segments: Sequence[tuple[int, Sequence[float]]] | None = None,
        window_shards: int = 64,
        num_partitions: int = 1,
        rank: int = 0,
        num_ranks: int = 1,
        threads: int = 2,
        prefetch: int = 4,
        strict: bool = True,
        errors: Literal["raise", "yield"] = "raise",
    ):
        check_sharing(global_batch, micro_batch, num_ranks)
        check_corpora(corpora, tokenizer, sequence_length)
        assert 0 <= rank < num_ranks
        self.corpora = list(corpora)
        self.sequence_length, self.global_batch, self.micro_batch = sequence_length, global_batch, micro_batch
        self.rank, self.num_ranks = rank, num_ranks
        self.threads, self.prefetch = threads, max(1, prefetch)
        self.strict, self.errors, self.error = strict, errors, None
        self._layouts = make_layouts(self.corpora, packing, sequence_length)
        self._instance_ends = [np.cumsum(layout.shard_instances) for layout in self._layouts]
        sizes = [int(ends[-1]) for ends in self._instance_ends]
        self.num_instances = sum(sizes)
        windows = None
        if shuffle == "window":
            windows = [
                ShardWindows(layout.shard_instances, window_shards, num_partitions, global_batch)
                for layout in self._layouts
            ]
        self.order = Order(
            sizes, list(weights) if weights is not None else sizes, seed, shuffle, segments=segments, windows=windows
        )
        self._maker = ExampleMaker(
            Objective(objective, mlm_probability, mask_unit, pairs, fim_rate),
            tokenizer,
            sequence_length=sequence_length,
            seed=seed,
            packed=packing == "best_fit",
            block=global_batch // num_partitions if windows else self.num_instances,
        )
        # Multilinear hashing: odd random factors for each position, input ids and labels apart.
        place = np.arange(sequence_length)
        self._factors = [mix(0, _FINGERPRINT, part, place) | np.uint64(1) for part in (0, 1)]
        self._closed = False
        self._running: list[ThreadPoolExecutor] = []

    def steps(self, cursor: int = 0, stop: int | None = None, size: int | None = None) -> Iterator[StepBatch]:
        """The steps from slot `cursor` on, for ever or up to slot `stop`, of `size` slots each (`global_batch`).

        What a slot holds does not depend on `size`, which all ranks must share out evenly.

        When the last step before `stop` is not full, rows without targets (all labels IGNORE_INDEX) stand in for the
        missing ones. They count neither as tokens nor in the fingerprint, so every rank gets the same number of steps
        and micro-batches, and sums over targets stay exact.
        """
        size = size or self.global_batch
        check_sharing(size, self.micro_batch, self.num_ranks)
        begins = count(cursor, size) if stop is None else iter(range(cursor, stop, size))
        ahead = Ahead(self.corpora, partial(self.shards_of, size=size), cursor, stop, size)
        if not self.threads:
            for begin in begins:
                ahead.look(begin)
                yield self._step(begin, stop, size)
            return
        executor = ThreadPoolExecutor(self.threads, thread_name_prefix="reader")
        self._running.append(executor)
        waiting: deque[Future[StepBatch]] = deque()
        try:
            while True:
                while len(waiting) < self.prefetch and (begin := next(begins, None)) is not None:
                    ahead.look(begin)
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
        """Stop all threads; iterators that are under way end."""
        self._closed = True
        for executor in list(self._running):
            executor.shutdown(wait=True, cancel_futures=True)
        for corpus in self.corpora:
            corpus.close()

    def shards_of(self, cursor: int, stop: int | None, size: int) -> list[tuple[int, int]]:
        """(corpus, shard) that each slot which this rank reads in the step at `cursor` begins in: each once, in order.

        What ends in the next shard reads its first bundle in passing (data/sequences/instances.py)."""
        slots = self._slots(cursor, size)
        corpus, _, instance = self.order.locate(slots[slots < _end(cursor, stop, size)])
        return list(dict.fromkeys((k, shard) for k, shard, _ in self._places(corpus, instance)))

    def _slots(self, cursor: int, size: int) -> np.ndarray:
        share = size // self.num_ranks
        return cursor + self.rank * share + np.arange(share)

    def _step(self, cursor: int, stop: int | None, size: int) -> StepBatch:
        end = _end(cursor, stop, size)
        if self.errors == "raise":
            return self._read_step(cursor, end, size)
        try:
            return self._read_step(cursor, end, size)
        except Exception as error:
            self.error = self.error or error
            batch = self._read_step(cursor, 0, size)  # no slot is real
            batch.cursor, batch.error = end, error
            return batch

    def _read_step(self, cursor: int, end: int, size: int) -> StepBatch:
        """This rank's part of the slots [cursor, cursor + size), of which those from `end` on only fill up."""
        slots = self._slots(cursor, size)
        real = slots[slots < end]
        corpus, epoch, instance = self.order.locate(real)
        rows = list(zip(self._places(corpus, instance), epoch.tolist(), instance.tolist(), strict=True))
        micro_batches, contents = [], []
        num_targets = substituted = 0
        for first in range(0, len(slots), self.micro_batch):
            part = slice(first, first + self.micro_batch)
            found, replaced = self._rows(slots[part], rows[part])
            micro = self._maker(found, partial(self._partner, slots[part], corpus[part]))
            micro_batches.append(micro)
            contents.append(self._content(micro)[: len(rows[part])])
            num_targets += micro["labels"].size - int(np.count_nonzero(micro["labels"] == IGNORE_INDEX))
            substituted += replaced
        return StepBatch(
            micro_batches=micro_batches,
            num_targets=num_targets,
            # A sum over rows: which rank or micro-batch a row is in does not matter; where a token is in its row does.
            fingerprint=int(mix(0, _FINGERPRINT, real, np.concatenate(contents)).sum(dtype=np.uint64)),
            num_tokens=len(rows) * self.sequence_length,
            cursor=end,
            substituted=substituted,
        )

    def _places(self, corpus: np.ndarray, instance: np.ndarray) -> list[tuple[int, int, int]]:
        """Where each instance is: (corpus, shard, place in the shard as the corpus's layout counts)."""
        shard, place = np.empty_like(instance), np.empty_like(instance)
        for k in np.unique(corpus):
            mine = corpus == k
            ends = self._instance_ends[k]
            shard[mine] = found = np.searchsorted(ends, instance[mine], side="right")
            place[mine] = instance[mine] - np.where(found > 0, ends[found - 1], 0)
        return list(zip(corpus.tolist(), shard.tolist(), place.tolist(), strict=True))

    def _rows(self, slots: np.ndarray, rows: list) -> tuple[Rows, int]:
        """The rows of `slots`, as the corpora store them, and how many of `rows`, the first ones, are substitutes."""
        tokens = np.full((len(slots), self._maker.row_length), self._maker.pad_id, dtype=self.corpora[0].dtype)
        begins = np.zeros(tokens.shape, dtype=bool)
        lengths = np.zeros(len(slots), dtype=np.int64)
        substituted = 0
        starts, shifts = [np.empty(0, dtype=np.int64)], [0]
        for row, ((corpus, shard, place), epoch, instance) in enumerate(rows):
            try:
                found = self._layouts[corpus].read_into(tokens[row], shard, place)
            except DamagedShard:
                if self.strict:
                    raise
                tokens[row] = self._maker.pad_id
                found = self._substitute(tokens[row], corpus, epoch, instance)
                substituted += 1
            starts.append(found[0])
            shifts.append(found[1] - row * tokens.shape[1])
            lengths[row] = found[2]
        begins.ravel()[np.concatenate(starts) - np.repeat(shifts, [len(s) for s in starts])] = True
        return Rows(tokens, begins, lengths if self._maker.packed else None, slots, len(rows)), substituted

    def _substitute(self, tokens: np.ndarray, corpus: int, epoch: int, instance: int) -> tuple[np.ndarray, int, int]:
        """`Layout.read_into` of the first sound instance among those that stand in for a damaged one.

        Each attempt has its own permutation of the corpus, so that a bundle's instances get different substitutes.
        """
        problem = None
        for attempt in range(MAX_SUBSTITUTES):
            key = int(mix(self.order.seed, _SUBSTITUTE, corpus, epoch, attempt)[0])
            size = int(self._instance_ends[corpus][-1])
            other = permute(np.array([instance], dtype=np.uint64), size, key).astype(np.int64)
            ((_, shard, place),) = self._places(np.array([corpus]), other)
            try:
                return self._layouts[corpus].read_into(tokens, shard, place)
            except DamagedShard as error:
                problem = error
        raise NoSoundData(
            f"corpus {self.corpora[corpus].folder}, split {self.corpora[corpus].split}: {MAX_SUBSTITUTES} sequences in "
            f"place of a damaged one are damaged too, the last: {problem}"
        )

    def _partner(self, slots: np.ndarray, corpora: np.ndarray, row: int) -> tuple[np.ndarray, np.ndarray]:
        """(tokens, starts) of another row of the same corpus, for the other half of the pair of a row: the first sound
        one of those that data.sentence_pairs names."""
        corpus = int(corpora[row])
        for attempt in range(MAX_SUBSTITUTES):
            other = np.array([self._maker.pairs.partner(int(slots[row]), attempt)])
            where, epoch, instance = self.order.locate(other)
            if int(where[0]) != corpus:
                continue
            place = self._places(where, instance)[0]
            try:
                rows, _ = self._rows(other, [(place, int(epoch[0]), int(instance[0]))])
            except DamagedShard:
                continue
            return rows.tokens[0], rows.starts[0]
        raise NoSoundData(f"corpus {self.corpora[corpus].folder}: no sound sequence for the other half of a pair")

    def _content(self, micro: dict[str, np.ndarray]) -> np.ndarray:
        """A hash of what each row holds, uint64 [rows]."""
        hashes = [
            np.vecdot(micro[name].view(np.uint64), factors)
            for name, factors in zip(("input_ids", "labels"), self._factors, strict=True)
        ]
        return hashes[0] + hashes[1]


def _end(cursor: int, stop: int | None, size: int) -> int:
    return cursor + size if stop is None else min(stop, cursor + size)
