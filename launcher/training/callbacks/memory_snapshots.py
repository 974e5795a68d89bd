"""Snapshots of a GPU's memory, for pytorch.org/memory_viz: what is allocated, and which lines of code did it."""

import sys
from collections.abc import Collection
from pathlib import Path

import torch

from ingot.launcher.training.callbacks.callback import Callback, Callbacks
from ingot.parallel.torch_compat import record_memory_history, write_memory_snapshot


class MemorySnapshots(Callback):
    """Records allocations, and writes a snapshot after chosen steps, and if the memory is exhausted.

    Args:
        rank: number of this rank, for the names of the files.
        steps: after which a snapshot is written.
        callbacks: are told where the files are.
    """

    def __init__(self, folder: Path, rank: int, steps: Collection[int], callbacks: Callbacks):
        self._folder, self._rank, self._steps, self._callbacks = folder, rank, set(steps), callbacks
        self._step = 0
        record_memory_history(True)

    def on_train_start(self, step: int) -> bool:
        self._step = step
        return False

    def on_step_end(self, step: int) -> None:
        self._step = step
        if step in self._steps:
            self._write(f"step-{step}")

    def close(self) -> None:
        if isinstance(sys.exc_info()[1], torch.OutOfMemoryError):
            self._write(f"out-of-memory-in-step-{self._step + 1}")
        record_memory_history(False)

    def _write(self, what: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank-{self._rank:05}-{what}.pickle"
        write_memory_snapshot(path)
        self._callbacks.event(self._step, "wrote a snapshot of the memory", path=str(path))
