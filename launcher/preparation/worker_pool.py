"""Does a rank's share of the pieces in processes of their own, under one progress bar with tokens/s and time left."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from ingot.data.writing.pieces import PreparationPlan, tokenize_piece


class ProgressBar:
    """Bytes on the left of the rate, tokens/s on its right."""

    def __init__(self, what: str, total_bytes: int, show: bool = True):
        from tqdm import tqdm

        self._bar = tqdm(
            desc=what,
            total=total_bytes,
            unit="B",
            unit_scale=True,
            file=sys.stderr,
            dynamic_ncols=True,
            disable=not show,
        )
        self._began, self._bytes, self._tokens = time.perf_counter(), 0, 0

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(self, *error) -> None:
        self._bar.close()

    def reach(self, num_bytes: int, num_tokens: int) -> None:
        """Show these totals."""
        if num_tokens:
            rate = num_tokens / max(time.perf_counter() - self._began, 1e-9)
            self._bar.set_postfix_str(f"{num_tokens:,} tokens, {rate:,.0f} tokens/s", refresh=False)
        self._bar.update(num_bytes - self._bytes)
        self._bytes = num_bytes

    def add(self, num_bytes: int, num_tokens: int = 0) -> None:
        self._tokens += num_tokens
        self.reach(self._bytes + num_bytes, self._tokens)


def process_pieces(
    plan: PreparationPlan, stage: str, numbers: Sequence[int], folder: Path, workers: int, show: bool = True
) -> None:
    """Work on the pieces `numbers` of `plan` with `workers` cores: a process for each piece, as far as both go, and the
    cores that are left as threads inside of them. Raises what the work raises, the earliest piece's error first."""
    if not numbers:
        return
    total = sum(source.size for number in numbers for source in plan.pieces[number])
    processes = min(workers, len(numbers))
    threads = max(1, workers // processes)
    what = {"tokens": "tokenizing", "signatures": "comparing"}[stage]
    with ProgressBar(what, total, show) as bar:
        if processes == 1:
            work = _Work(plan, folder, threads)
            for number in numbers:
                work.do(stage, number, bar.add)
            return
        _in_processes(plan, stage, numbers, folder, processes, threads, bar)


class _Work:
    """What a worker keeps from piece to piece."""

    def __init__(self, plan: PreparationPlan, folder: Path, threads: int):
        self.plan, self.folder, self.threads = plan, folder, threads
        self._tokenizer = None

    def do(self, stage: str, number: int, report) -> None:
        from ingot.data.tokenizers.tokenizer import load_tokenizer
        from ingot.data.writing.deduplication import compute_signatures, dropped_documents

        if stage == "signatures":
            compute_signatures(self.plan, number, self.folder, report)
            return
        self._tokenizer = self._tokenizer or load_tokenizer(self.folder / "tokenizer")
        dropped = dropped_documents(self.plan, number, self.folder)
        tokenize_piece(
            self.plan, number, self.folder, self._tokenizer, dropped=dropped, threads=self.threads, report=report
        )


def _in_processes(
    plan: PreparationPlan, stage: str, numbers, folder: Path, processes: int, threads: int, bar: ProgressBar
) -> None:
    import multiprocessing

    context = multiprocessing.get_context("spawn")
    done = context.Array("q", 2)  # bytes of text, tokens
    setup = (str(folder), threads, done, os.getpid())
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=setup)
    try:
        pending = {pool.submit(_do_in_worker, stage, number): number for number in numbers}
        failed: dict[int, BaseException] = {}
        while pending and not failed:
            finished, _ = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.reach(*done)
            for future in finished:
                number = pending.pop(future)
                if error := future.exception():
                    failed[number] = error
        if failed:
            raise failed[min(failed)]
    except BrokenProcessPool as error:
        raise OSError(
            "a worker process ended without a word, perhaps for lack of memory: run the same command again with fewer "
            "--workers; finished pieces are kept"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


_work: _Work
_done = None


def _start_worker(folder: str, threads: int, done, parent: int) -> None:
    global _work, _done
    os.environ["RAYON_NUM_THREADS"] = str(threads)  # for tokenizers of `transformers`
    plan = PreparationPlan.load(Path(folder))
    assert plan is not None
    _work, _done = _Work(plan, Path(folder), threads), done
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    """A pool's workers would wait for ever for a parent that was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _do_in_worker(stage: str, number: int) -> None:
    def report(num_bytes: int, num_tokens: int) -> None:
        with _done.get_lock():
            _done[0] += num_bytes
            _done[1] += num_tokens

    _work.do(stage, number, report)
