"""Speed and memory of the training steps."""

import resource
import sys
import time

import torch


class StepTimer:
    """Means over the steps since the last report. A step's time counts from the end of the step before."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._clear()

    def _clear(self) -> None:
        self._steps, self._seconds, self._data, self._tokens = 0, 0.0, 0.0, 0

    def lap(self) -> float:
        """Seconds since the last lap."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        return seconds

    def add(self, data_seconds: float, tokens: int) -> None:
        """Ends a step, which waited `data_seconds` for its data."""
        self._steps += 1
        self._data += data_seconds
        self._seconds += data_seconds + self.lap()
        self._tokens += tokens

    def means(self) -> tuple[float, float, float]:
        """Seconds for each step, seconds of these waiting for data, tokens for each second; then starts again."""
        result = self._seconds / self._steps, self._data / self._steps, self._tokens / self._seconds
        self._clear()
        return result


def peak_memory(device: torch.device) -> int:
    """Peak bytes so far: allocated on a CUDA device, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
