"""Time and memory of each attention back-end, compared with torch's SDPA with a dense boolean mask.

    python benchmarks/attention.py [--types bf16 fp32] [--cases packed window] [--lengths 512 2048 8192] [--repeats 7]

Documents of random lengths (mean 20, 150, and one a row) and local windows (64 and 128 neighbours, with one document a
row and with documents of mean 150), causal and not, 8 heads of 64, 4096 tokens in rows of a length (8192: one row).
For each case and back-end: milliseconds to prepare the layout, of the forward pass, and of forward and backward
together: the median of repeats that alternate with the other back-ends, and the fastest in brackets; the speed-up of
both passes over the mask; MB of the layout (CPU) or of the peak (CUDA). `*` marks the back-end that prepare_layout
chooses. On a machine with other work, use `--busy`: it measures the processor time of one thread.
"""

import argparse
import time
from dataclasses import fields
from statistics import median
from typing import get_args

import _clone  # noqa: F401
import torch
from torch import Tensor, nn

from ingot.model.attention.attention import AttentionLayout, attention, prepare_layout
from ingot.model.attention.backends import Backend
from ingot.model.attention.masks import dense_mask, segments_of

HEADS, SIZE, TOKENS = 8, 64, 4096
TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
BACKENDS: tuple[Backend, ...] = get_args(Backend)


def boundaries(batch: int, length: int, mean: int | None) -> Tensor:
    """`cu_seqlens` of rows filled with documents of geometric lengths, which end at the ends of rows."""
    starts_BT = torch.zeros(batch, length, dtype=torch.bool)
    if mean is not None:
        starts_BT = torch.rand(batch, length, generator=torch.Generator().manual_seed(0)) < 1 / mean
    starts_BT[:, 0] = True
    ends = starts_BT.flatten().nonzero()[:, 0]
    return torch.cat((ends, torch.tensor([batch * length]))).int()


def with_mask(qkv: list[Tensor], mask: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in qkv), mask).transpose(1, 2)


def megabytes(layout: AttentionLayout) -> float:
    tensors = [getattr(layout, field.name) for field in fields(layout)]
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor)) / 1e6


class Clock:
    """Milliseconds of a call: of the wall, of this thread (`--busy`), or of the GPU."""

    def __init__(self, device: torch.device, busy: bool):
        self.device, self.now = device, time.thread_time if busy else time.perf_counter

    def __call__(self, function) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        start = self.now()
        function()
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return 1e3 * (self.now() - start)


def run(name: str, batch: int, length: int, mean: int | None, window: int | None, causal: bool, arguments) -> None:
    device = torch.device(arguments.device)
    cu_seqlens = boundaries(batch, length, mean).to(device)
    clock = Clock(device, arguments.busy)
    for type_name in arguments.types:
        dtype = TYPES[type_name]
        q, k, v, gradient = torch.randn(4, batch, length, HEADS, SIZE, device=device).to(dtype).unbind()
        qkv = [x.clone().requires_grad_() for x in (q, k, v)]

        def prepare(backend, dtype=dtype):
            what = {"window": window, "dtype": dtype, "head_size": SIZE, "backend": backend}
            return prepare_layout(batch, length, causal, cu_seqlens, device, **what)

        def prepare_mask():
            segments_BT = segments_of(cu_seqlens, batch * length).view(batch, length)
            return dense_mask(length, 0, causal, window, device, segments_BT=segments_BT)

        mask = prepare_mask()
        sides = {"mask": (prepare_mask, lambda qkv=qkv, mask=mask: with_mask(qkv, mask), mask.numel() / 1e6)}
        chosen = prepare(None)
        for backend in BACKENDS:
            try:
                layout = prepare(backend)
            except ValueError:
                continue
            if layout.mask is None or layout.backend != "sdpa":  # else it is the mask's side again
                label = backend + " *" * (backend == chosen.backend)
                call = lambda qkv=qkv, layout=layout: attention(*qkv, layout)  # noqa: E731
                sides[label] = (lambda backend=backend: prepare(backend), call, megabytes(layout))

        times = {label: ([], [], []) for label in sides}
        peaks = {}
        for repeat in range(arguments.repeats + 1):
            for label, (prepares, forward, _) in sides.items():
                if device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()
                measured = (
                    clock(prepares),
                    clock(forward),
                    clock(lambda forward=forward, gradient=gradient: forward().backward(gradient)),
                )
                if device.type == "cuda":
                    peaks[label] = torch.cuda.max_memory_allocated() / 1e6
                if repeat:  # the first one warms up
                    for one, several in zip(measured, times[label], strict=True):
                        several.append(one)
        both = median(times["mask"][2])
        print(f"{name}, {'causal' if causal else 'bidirectional'}, {type_name}, {batch} x {length}")
        for label, (*_, size) in sides.items():
            columns = "".join(f"{median(t):10.2f} ({min(t):8.2f})" for t in times[label])
            print(
                f"  {label:12}{columns}{both / median(times[label][2]):8.2f} x {peaks.get(label, size):9.2f} MB",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--types", nargs="+", choices=TYPES, default=list(TYPES))
    parser.add_argument("--cases", nargs="+", choices=("packed", "window"), default=["packed", "window"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 2048, 8192])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--busy", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    arguments = parser.parse_args()
    if arguments.busy:
        torch.set_num_threads(1)
    print(
        f"torch {torch.__version__}, {arguments.device}, {torch.get_num_threads()} threads, {arguments.repeats} repeats"
    )
    print(f"  {'back-end':12}{'layout ms':>21}{'forward ms':>21}{'with backward ms':>21}{'speed':>10}{'memory':>12}")
    means = {"short documents": 20, "medium documents": 150, "one document a row": None}
    for length in arguments.lengths:
        batch = max(1, TOKENS // length)
        for causal in (True, False):
            if "packed" in arguments.cases:
                for name, mean in means.items():
                    run(name, batch, length, mean, None, causal, arguments)
            if "window" in arguments.cases:
                for window in (64, 128):
                    run(f"window {window}", batch, length, None, window, causal, arguments)
                    run(f"window {window}, medium documents", batch, length, 150, window, causal, arguments)


if __name__ == "__main__":
    main()
