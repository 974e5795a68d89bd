"""torch's profiler on chosen steps: a trace for Perfetto (ui.perfetto.dev), and a table of operators."""

from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from ingot.launcher.training.callbacks.callback import Callback, Callbacks

FOLDER = "profile"
"""Folder in that of the run, also for snapshots of memory."""


class Profiler(Callback):
    """Profiles the steps first..last, and writes a trace and a table into `folder`.

    Args:
        rank: number of this rank, for the names of the files.
        callbacks: are told where the files are.
    """

    def __init__(self, folder: Path, rank: int, first: int, last: int, callbacks: Callbacks):
        self._folder, self._rank, self._first, self._last = folder, rank, first, last
        self._callbacks, self._started = callbacks, 0
        self._profile: profile | None = None

    def on_train_start(self, step: int) -> bool:
        self._start_before(step + 1)
        return False

    def on_step_end(self, step: int) -> None:
        if step >= self._last:
            self._finish(step)
        self._start_before(step + 1)

    def on_train_end(self, step: int, scores: dict[str, float]) -> None:
        self._finish(step)

    def close(self) -> None:
        if self._profile is not None:  # the run did not come to the last of the steps
            self._profile.stop()
            self._profile = None

    def _start_before(self, step: int) -> None:
        if self._profile is None and self._first <= step <= self._last:
            activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
            self._profile, self._started = profile(activities=activities, record_shapes=True), step
            self._profile.start()

    def _finish(self, step: int) -> None:
        if self._profile is None:
            return
        done, self._profile = self._profile, None
        done.stop()
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank-{self._rank:05}-steps-{self._started}-{step}.json.gz"
        done.export_chrome_trace(str(path))
        order = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = done.key_averages(group_by_input_shape=True).table(sort_by=order, row_limit=100)
        path.with_name(path.name.replace(".json.gz", ".txt")).write_text(table + "\n")
        self._callbacks.event(step, "wrote a profile", path=str(path))
