"""One section of the benchmark of a GPU: how long it may take, how it times, and what it keeps."""

import gc
import importlib.util
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class Bench:
    """One section: where it runs, how long it may take, and what it found."""

    def __init__(self, section: str, seconds: float, tiny: bool, results: Path):
        self.section, self.end, self.tiny = section, time.monotonic() + seconds, tiny
        self.device = torch.device("cpu" if tiny else "cuda")
        self.results = results
        self._longest = 0.0

    def say(self, name: str, **values: Any) -> None:
        """Prints a line and keeps it."""
        text = "  ".join(f"{key} {_shown(value)}" for key, value in values.items())
        print(f"  {name:<58} {text}", flush=True)
        with self.results.open("a") as file:
            file.write(json.dumps({"section": self.section, "name": name, **values}) + "\n")

    def cases(self, cases: dict[str, Callable[[], None]]) -> None:
        """Runs each case that fits into the time. One that fails does not end the others."""
        for name, case in cases.items():
            left = self.end - time.monotonic()
            if left < self._longest / 2 and not self.tiny:
                self.say(name, skipped=f"{left:.0f} s are left of the section's time")
                continue
            start = time.monotonic()
            try:
                case()
            except Exception as error:  # a case must not end the others
                traceback.print_exc(limit=3)
                self.say(name, failed=f"{type(error).__name__}: {error}"[:300])
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
            self._longest = max(self._longest, time.monotonic() - start)

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def times(self, function: Callable[[], Any], seconds: float = 2.0, warm: int = 3, most: int = 30) -> list[float]:
        """Seconds of single runs."""
        warm, most = (1, 2) if self.tiny else (warm, most)
        for _ in range(warm):
            function()
        self.wait()
        found: list[float] = []
        end = time.monotonic() + seconds
        while len(found) < 2 or (len(found) < most and time.monotonic() < end):
            start = time.perf_counter()
            function()
            self.wait()
            found.append(time.perf_counter() - start)
        return found

    @property
    def peak(self) -> float | None:
        from ingot.model.costs.flops import peak_flops

        return peak_flops(torch.cuda.get_device_name(), torch.bfloat16) if self.device.type == "cuda" else None

    def memory(self) -> float | None:
        return torch.cuda.max_memory_allocated() / 2**30 if self.device.type == "cuda" else None


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)


def installed(*names: str) -> bool:
    return all(importlib.util.find_spec(name) is not None for name in names)


def why_missing(bench: Bench, name: str, *packages: str) -> bool:
    """Says so, and True, if a package is missing."""
    missing = [each for each in packages if not installed(each)]
    if missing:
        bench.say(name, skipped=f"{', '.join(missing)} is not installed")
    return bool(missing)
