"""The speed and memory of training steps."""

import resource
import sys
import time

import torch


class StepTimer:
    """Measures steps. The time of a step starts at the end of the step before; `means` averages since its last call."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds, self._data, self._tokens = 0, 0.0, 0.0, 0

    def lap(self) -> float:
        """Starts a new lap. Returns the seconds of the last one."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def add(self, data_seconds: float, tokens: int) -> None:
        """Ends a step of `tokens` tokens, which waited `data_seconds` for its data before the last lap started."""
        self._steps += 1
        self._data += data_seconds
        self._seconds += data_seconds + self.lap()
        self._tokens += tokens

    def means(self) -> tuple[float, float, float]:
        """Seconds per step, seconds of these waiting for data, and tokens per second, since the last call."""
        result = self._seconds / self._steps, self._data / self._steps, self._tokens / self._seconds
        self._clear()
        return result


def peak_memory(device: torch.device) -> int:
    """The most bytes so far: allocated on a CUDA device; on a CPU, resident in the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
