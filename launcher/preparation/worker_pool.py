"""Processes the pieces of one rank in several processes, with one progress bar that shows tokens/s and time left."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.writing.deduplication import compute_signatures, dropped_documents
from ingot.data.writing.pieces import PreparationPlan, tokenize_piece
from ingot.launcher.runtime.exit_codes import explain

PROGRESS_LABELS = {"tokens": "tokenizing", "signatures": "finding duplicates"}


class ProgressBar:
    """A progress bar in bytes of text, which also shows tokens and tokens/s."""

    def __init__(self, label: str, total_bytes: int, show: bool = True):
        from tqdm import tqdm

        self._bar = tqdm(
            desc=label,
            total=total_bytes,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not show,
        )
        self._start, self._bytes, self._tokens = time.perf_counter(), 0, 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.close()

    def show_totals(self, num_bytes: int, num_tokens: int) -> None:
        if num_tokens:
            rate = num_tokens / max(time.perf_counter() - self._start, 1e-9)
            self._bar.set_postfix_str(f"{num_tokens:,} tokens, {rate:,.0f} tokens/s", refresh=False)
        self._bar.update(num_bytes - self._bytes)
        self._bytes = num_bytes

    def add(self, num_bytes: int, num_tokens: int = 0) -> None:
        self._tokens += num_tokens
        self.show_totals(self._bytes + num_bytes, self._tokens)


def process_pieces(
    plan: PreparationPlan, stage: str, numbers: Sequence[int], folder: Path, workers: int, show: bool = True
) -> None:
    """Process the pieces `numbers` of `plan` with `workers` cores.

    Each piece gets a process, up to `workers` processes. If there are more cores than pieces, each process gets several
    threads. Raises the error of the first piece that failed.
    """
    if not numbers:
        return
    total = sum(part.size for number in numbers for part in plan.pieces[number])
    processes = min(workers, len(numbers))
    threads = max(1, workers // processes)
    with ProgressBar(PROGRESS_LABELS[stage], total, show) as bar:
        if processes == 1:
            worker = _Worker(plan, folder, threads)
            for number in numbers:
                worker.process(stage, number, bar.add)
            return
        _process_in_pool(plan, stage, numbers, folder, processes, threads, bar)


class _Worker:
    """Processes one piece after another, with the same tokenizer."""

    def __init__(self, plan: PreparationPlan, folder: Path, threads: int):
        self.plan, self.folder, self.threads = plan, folder, threads
        self._tokenizer: Tokenizer | None = None

    def process(self, stage: str, number: int, report: Callable[[int, int], None]) -> None:
        if stage == "signatures":
            compute_signatures(self.plan, number, self.folder, report)
            return
        self._tokenizer = self._tokenizer or load_tokenizer(self.folder / "tokenizer")
        dropped = dropped_documents(self.plan, number, self.folder)
        tokenize_piece(
            self.plan, number, self.folder, self._tokenizer, dropped=dropped, threads=self.threads, report=report
        )


def _process_in_pool(
    plan: PreparationPlan,
    stage: str,
    numbers: Sequence[int],
    folder: Path,
    processes: int,
    threads: int,
    bar: ProgressBar,
) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    totals: Any = context.Array("q", 2)  # bytes of text, tokens; the type is not in typeshed
    setup = (str(folder), threads, totals, os.getpid())
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=setup)
    try:
        pending = {pool.submit(_process_in_worker, stage, number): number for number in numbers}
        failed: dict[int, BaseException] = {}
        while pending and not failed:
            finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.show_totals(*totals)
            for future in finished:
                number = pending.pop(future)
                if error := future.exception():
                    failed[number] = error
        if failed:
            raise failed[min(failed)]
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process ended without a message, perhaps because memory was full: run the same command again "
            "with fewer --workers; finished pieces are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


# What a worker process keeps between its pieces.
_worker: _Worker
_totals: Any = None


def _start_worker(folder: str, threads: int, totals: Any, parent: int) -> None:
    global _worker, _totals
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # for tokenizers of `transformers`
    plan = PreparationPlan.load(Path(folder))
    assert plan is not None
    _worker, _totals = _Worker(plan, Path(folder), threads), totals
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """Ends the worker if its parent was killed; else it would wait for work without end."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _process_in_worker(stage: str, number: int) -> None:
    def report(num_bytes: int, num_tokens: int) -> None:
        with _totals.get_lock():
            _totals[0] += num_bytes
            _totals[1] += num_tokens

    try:
        _worker.process(stage, number, report)
    except ValueError as error:  # where it came from does not reach the other process
        raise ValueError(explain(error)) from None
