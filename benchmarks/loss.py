"""Time and peak memory of the fused loss, compared with a plain loss and with torch's own chunked loss.

    python benchmarks/loss.py                     # all shapes
    python benchmarks/loss.py "GPT-2 tiny, bf16"  # one of them

Prints for each shape the peak memory and the time of one forward and backward of

- plain: `F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")`,
- ingot: `linear_cross_entropy` of model/loss.py,
- torch: `F.linear_cross_entropy` with `LinearCrossEntropyOptions()`, where torch has it (2.13 does, 2.11 does not).

Peak memory includes hidden, weight, their gradients, and all temporaries. Each side runs once in a fresh process; the
result is the peak resident memory (VmHWM) minus the resident memory (VmRSS) after the imports and a tiny run, before
the inputs are allocated. So it includes the memory of torch and of the libraries below it. Linux only.

Times are medians of repeats that alternate between the sides in one process, with the minimum and the maximum, so that
other work on the machine slows all sides. Wall time is the duration of a run. Processor time, of all threads together,
is the cost of the work if other processes use the processors; with `--threads 1` it does not include waiting. GFLOP/s
counts the three matrix products per second of wall time.
"""

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import _clone  # noqa: F401
import torch
from torch import Tensor
from torch.nn import functional as F

from ingot.model.loss import linear_cross_entropy


@dataclass(frozen=True)
class Shape:
    tokens: int
    width: int
    vocabulary: int
    dtype: torch.dtype

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(0)
        hidden = torch.empty(self.tokens, self.width, dtype=self.dtype).normal_(generator=generator)
        weight = torch.empty(self.vocabulary, self.width, dtype=self.dtype).normal_(0, 0.02, generator=generator)
        labels = torch.randint(0, self.vocabulary, (self.tokens,), generator=generator)
        return hidden.requires_grad_(), weight.requires_grad_(), labels


SHAPES = {
    "GPT-2 head, fp32": Shape(2048, 768, 50304, torch.float32),
    "GPT-2 head, bf16": Shape(2048, 768, 50304, torch.bfloat16),
    "GPT-2 tiny, bf16": Shape(4096, 512, 8192, torch.bfloat16),
}


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight).float(), labels, reduction="sum")


def ingot(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return linear_cross_entropy(hidden, weight, None, labels)


def torch_own(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    options = torch.nn.LinearCrossEntropyOptions()
    return F.linear_cross_entropy(hidden, weight, labels, reduction="sum", options=options)


SIDES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {"plain": plain, "ingot": ingot}
if hasattr(F, "linear_cross_entropy"):
    SIDES["torch"] = torch_own


def step(side: str, hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[float, float]:
    """Milliseconds of a forward and a backward of the mean loss: wall time and processor time."""
    hidden.grad = weight.grad = None
    start, cpu_start = time.perf_counter(), time.process_time()
    (SIDES[side](hidden, weight, labels) / len(labels)).backward()
    return 1e3 * (time.perf_counter() - start), 1e3 * (time.process_time() - cpu_start)


def resident(key: str) -> float:
    """MiB of a line of /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(key + ":"))


def peak_memory(side: str, shape: Shape) -> float:
    """MiB above the start that this process ever held; for a fresh process."""
    step(side, *Shape(64, 64, 64, shape.dtype).inputs())
    before = resident("VmRSS")
    step(side, *shape.inputs())
    return resident("VmHWM") - before


def peak_memory_of_a_fresh_process(side: str, name: str) -> float:
    command = [sys.executable, __file__, name, "--peak_of", side]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(name: str, repeats: int) -> None:
    shape = SHAPES[name]
    peaks = {side: peak_memory_of_a_fresh_process(side, name) for side in SIDES}
    inputs = shape.inputs()
    times: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
    for repeat in range(repeats + 1):
        for side in SIDES:
            measured = step(side, *inputs)
            if repeat:  # the first is a warm-up
                times[side].append(measured)
    flops = 6 * shape.tokens * shape.width * shape.vocabulary
    print(f"\n{name}: {shape.tokens} tokens x width {shape.width} x vocabulary {shape.vocabulary}, {repeats} repeats")
    print(f"{'':<6}  {'peak MiB':>8} {'ratio':>5}", end="")
    print("".join(f"  {clock:>8} {'least - greatest':>17} {'ratio':>5}" for clock in ("wall ms", "CPU ms")), " GFLOP/s")
    for side in SIDES:
        print(f"{side:<6}  {peaks[side]:>8.0f} {peaks[side] / peaks['plain']:>5.2f}", end="")
        for clock in range(2):
            mine, base = ([pair[clock] for pair in times[key]] for key in (side, "plain"))
            span = f"{min(mine):,.0f} - {max(mine):,.0f}"
            print(f"  {median(mine):>8,.0f} {span:>17} {median(mine) / median(base):>5.2f}", end="")
        print(f"  {flops / median(wall for wall, _ in times[side]) / 1e6:>7.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", nargs="*", choices=[[], *SHAPES], default=[], help="default: all")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak_of", choices=list(SIDES), help=argparse.SUPPRESS)  # in the fresh process
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.peak_of:
        print(peak_memory(arguments.peak_of, SHAPES[arguments.shape[0]]))
        return
    machine = f"{os.cpu_count()} cores {platform.machine()}, load {os.getloadavg()[0]:.1f}"
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; {machine}")
    for name in arguments.shape or SHAPES:
        compare(name, arguments.repeats)


if __name__ == "__main__":
    main()
