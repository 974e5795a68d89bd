"""From corpora to the batches of one rank, in an order that no thread, rank count or restart can change.

Step after step, the slots [cursor, cursor + global batch) are shared out: rank r of D takes the r-th of D equal,
contiguous parts. The cursor is all there is to remember.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from data.objectives import IGNORE_INDEX, MaskedLanguageModel, clm
from data.order import Order, mix
from data.packing import InstanceMap, cumulative_lengths, positions
from data.shards import Corpus
from data.tokenizer import Tokenizer

_FINGERPRINT = 5  # a stream of random numbers of its own; see data/order.py and data/objectives.py


@dataclass
class StepBatch:
    """One rank's part of one optimizer step.

    Each micro-batch holds `input_ids`, `labels`, `positions` (int64 [micro, L]) and `cu_seqlens` (int32 [segments + 1],
    over the micro * L tokens laid end to end; every row and every document begins a segment).
    """

    micro_batches: list[dict[str, np.ndarray]]
    num_targets: int  # labels that are not IGNORE_INDEX, in this rank's micro-batches
    fingerprint: int  # in [0, 2**64); the sum over ranks, mod 2**64, is the step's batch fingerprint
    num_tokens: int  # input tokens in this rank's micro-batches, rows that only fill up left out
    cursor: int  # slots consumed, by all ranks, once this step is done


class Reader:
    """Batches of a mixture of corpora for rank `rank` of `num_ranks`.

    `global_batch` and `micro_batch` count sequences: of a step over all ranks, and of one forward pass on one rank.
    `threads` read ahead, at most `prefetch` steps; neither changes what comes out, and with 0 threads each step is read
    when it is asked for. `weights` None mixes the corpora by their sizes.

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
        shuffle: bool,
        global_batch: int,
        micro_batch: int,
        mlm_probability: float = 0.15,
        rank: int = 0,
        num_ranks: int = 1,
        threads: int = 2,
        prefetch: int = 4,
    ):
        check_sharing(global_batch, micro_batch, num_ranks)
        check_corpora(corpora, tokenizer, sequence_length)
        assert 0 <= rank < num_ranks
        self.corpora = list(corpora)
        self.sequence_length, self.global_batch, self.micro_batch = sequence_length, global_batch, micro_batch
        self.rank, self.num_ranks = rank, num_ranks
        self.threads, self.prefetch = threads, max(1, prefetch)
        self._maps = [InstanceMap([s.tokens for s in corpus.shards], sequence_length) for corpus in self.corpora]
        sizes = [len(m) for m in self._maps]
        self.num_instances = sum(sizes)
        self.order = Order(sizes, list(weights) if weights is not None else sizes, seed, shuffle)
        self._eos_id = tokenizer.eos_id
        self._fill_id = tokenizer.pad_id if tokenizer.pad_id is not None else 0
        if objective not in ("clm", "mlm"):
            raise ValueError(f"objective {objective!r} is unknown: choose clm or mlm")
        self._mlm = None
        if objective == "mlm":
            self._mlm = MaskedLanguageModel(
                probability=mlm_probability,
                mask_id=tokenizer.mask_id,
                special_ids=tokenizer.special_ids,
                vocab_size=tokenizer.vocab_size,
                seed=seed,
            )
        # Multilinear hashing: odd random factors for each position, input ids and labels apart.
        place = np.arange(sequence_length)
        self._factors = [mix(0, _FINGERPRINT, part, place) | np.uint64(1) for part in (0, 1)]
        self._closed = False
        self._running: list[ThreadPoolExecutor] = []

    def steps(self, cursor: int = 0, stop: int | None = None) -> Iterator[StepBatch]:
        """The steps from slot `cursor` on, for ever or up to slot `stop`.

        When the last step before `stop` is not full, rows without targets (all labels IGNORE_INDEX) stand in for the
        missing ones. They count neither as tokens nor in the fingerprint, so every rank gets the same number of steps
        and micro-batches, and sums over targets stay exact.
        """
        begins = iter(range(cursor, stop, self.global_batch)) if stop is not None else _count(cursor, self.global_batch)
        if not self.threads:
            for begin in begins:
                yield self._step(begin, stop)
            return
        executor = ThreadPoolExecutor(self.threads, thread_name_prefix="reader")
        self._running.append(executor)
        waiting: deque[Future[StepBatch]] = deque()
        try:
            while True:
                while len(waiting) < self.prefetch and (begin := next(begins, None)) is not None:
                    waiting.append(executor.submit(self._step, begin, stop))
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

    def _step(self, cursor: int, stop: int | None) -> StepBatch:
        share = self.global_batch // self.num_ranks
        slots = cursor + self.rank * share + np.arange(share)
        end = cursor + self.global_batch if stop is None else min(stop, cursor + self.global_batch)
        real = slots[slots < end]  # fewer than `slots` only at the end
        rows = list(zip(*self.order.locate(real), strict=True))
        parts = [slice(first, first + self.micro_batch) for first in range(0, share, self.micro_batch)]
        done = [self._micro_batch(slots[part], rows[part]) for part in parts]
        contents = np.concatenate([content for _, content in done])
        return StepBatch(
            micro_batches=[micro for micro, _ in done],
            num_targets=sum(int(np.count_nonzero(micro["labels"] != IGNORE_INDEX)) for micro, _ in done),
            # A sum over rows: which rank or micro-batch a row is in does not matter; where a token is in its row does.
            fingerprint=int(mix(0, _FINGERPRINT, real, contents).sum(dtype=np.uint64)),
            num_tokens=len(rows) * self.sequence_length,
            cursor=end,
        )

    def _micro_batch(self, slots: np.ndarray, rows: list) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The micro-batch of `slots`, the first len(rows) of them real, and a hash of each row's content."""
        L = self.sequence_length
        tokens_BT1 = np.full((len(slots), L + 1), self._fill_id, dtype=np.int64)
        starts_BT1 = np.zeros((len(slots), L + 1), dtype=bool)
        for row, (corpus, _, instance) in enumerate(rows):
            shard, first = self._maps[corpus].locate(int(instance))
            tokens_BT1[row], boundaries = self.corpora[corpus].read(shard, first, first + L + 1)
            starts_BT1[row, boundaries] = True
        if self._mlm is None:
            input_ids, labels = clm(tokens_BT1, starts_BT1, self._eos_id)
        else:
            input_ids, labels = self._mlm(tokens_BT1[:, :L], slots)
        labels[len(rows) :] = IGNORE_INDEX
        starts_BT = starts_BT1[:, :L]
        micro = {
            "input_ids": input_ids,
            "labels": labels,
            "positions": positions(starts_BT),
            "cu_seqlens": cumulative_lengths(starts_BT),
        }
        content = input_ids.view(np.uint64) @ self._factors[0] + labels.view(np.uint64) @ self._factors[1]
        return micro, content[: len(rows)]


def _count(start: int, step: int) -> Iterator[int]:
    while True:
        yield start
        start += step


def check_sharing(global_batch: int, micro_batch: int, num_ranks: int) -> None:
    """Raises ValueError, naming the nearest numbers that would do, unless `num_ranks` divides `global_batch` and
    `micro_batch` divides the share of each rank."""
    if min(global_batch, micro_batch, num_ranks) < 1:
        raise ValueError(f"global batch ({global_batch}), micro-batch ({micro_batch}) and data ranks must be positive")
    if global_batch % num_ranks:
        below, above = global_batch // num_ranks * num_ranks, -(-global_batch // num_ranks) * num_ranks
        sizes = f"{below} or {above}" if below else f"{above}"
        raise ValueError(
            f"a global batch of {global_batch} sequences cannot be shared out among {num_ranks} data ranks: use a "
            f"global batch of {sizes}, or {_near(global_batch, num_ranks)} data ranks"
        )
    share = global_batch // num_ranks
    if share % micro_batch:
        raise ValueError(
            f"a micro-batch of {micro_batch} sequences does not divide the {share} of each rank (global batch "
            f"{global_batch} over {num_ranks} data ranks): use a micro-batch of {_near(share, micro_batch)}"
        )


def _near(number: int, wanted: int) -> str:
    """The divisors of `number` next to `wanted`, below and above: "4 or 8"."""
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    near = [
        max((d for d in divisors if d <= wanted), default=None),
        min((d for d in divisors if d >= wanted), default=None),
    ]
    return " or ".join(str(d) for d in near if d is not None)


def check_corpora(corpora: Sequence[Corpus], tokenizer: Tokenizer, sequence_length: int) -> None:
    """Raises ValueError unless all corpora were made with `tokenizer` and hold at least one sequence each."""
    if not corpora:
        raise ValueError("no corpus to read: name at least one")
    if sequence_length < 1:
        raise ValueError(f"sequence_length must be positive, is {sequence_length}")
    for corpus in corpora:
        if corpus.tokenizer_sha256 != tokenizer.sha256:
            raise ValueError(
                f"corpus {corpus.folder} was made with another tokenizer (sha256 {corpus.tokenizer_sha256[:16]}) than "
                f"{tokenizer.folder} (sha256 {tokenizer.sha256[:16]}): prepare it with "
                f"--tokenizer.path {tokenizer.folder}"
            )
        if not corpus.num_instances(sequence_length):
            longest = max((shard.tokens for shard in corpus.shards), default=0)
            raise ValueError(
                f"corpus {corpus.folder}, split {corpus.split}: no shard has the {sequence_length + 1} tokens that one "
                f"sequence takes (the largest has {longest}): use a sequence_length of at most {max(1, longest - 1)}"
            )
