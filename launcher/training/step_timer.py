"""The speed and memory of training steps, and what they compute."""

import resource
import sys
import time
from collections.abc import Iterable

import numpy as np
import torch

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.model.config import ModelConfig
from ingot.model.costs.flops import computed_flops
from ingot.model.finetuning.task_model import TaskConfig


class StepTimer:
    """Measures steps. The time of a step starts at the end of the step before; `means` averages since its last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds, self._data, self._tokens, self._flops = 0, 0.0, 0.0, 0, 0.0

    def lap(self) -> float:
        """Starts a new lap. Returns the seconds of the last one."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def add(self, data_seconds: float, tokens: int, flops: float = 0.0) -> None:
        """Ends a step of `tokens` tokens and `flops` operations, which waited `data_seconds` for its data before the
        last lap started."""
        self._steps += 1
        self._data += data_seconds
        self._seconds += data_seconds + self.lap()
        self._tokens += tokens
        self._flops += flops

    def means(self) -> tuple[float, float, float, float]:
        """Seconds per step, seconds of these waiting for data, tokens per second, and operations per second, since the
        last call."""
        steps, seconds = self._steps, self._seconds
        result = seconds / steps, self._data / steps, self._tokens / seconds, self._flops / seconds
        self._clear()
        return result


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: allocated on a CUDA device; on a CPU, resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def needed_flops(
    micro_batches: Iterable[dict[str, np.ndarray]], model: ModelConfig, task: TaskConfig | None = None
) -> float:
    """FLOPs that forward and backward of these micro-batches need: what is hidden, and rows of a language model's head
    without a target, do not count (`computed_flops`)."""
    total = 0.0
    for micro_batch in micro_batches:
        lengths = np.diff(micro_batch["cu_seqlens"]).tolist()
        targets = None if task else int(np.count_nonzero(micro_batch["labels"] != IGNORE_INDEX))
        total += computed_flops(model, lengths, targets, task)
    return total
