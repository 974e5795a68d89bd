"""A check at the start: is one rank, or one machine, much slower than the others? All would wait for it in each step.

Each rank times a matrix product, which shows a device that is too hot, shared or capped, and all time a sum of a few
megabytes, which shows how fast the network is. It takes less than two seconds.
"""

import math
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from ingot.parallel.mesh import Mesh

SLOW = 1.5  # times the median of all ranks
MOST_NAMED = 8
REPEATS = 5
MOST_SECONDS = 0.5  # for the repeats of one measurement; a slow rank does at least three

PRODUCTS = {"cpu": (512, 4), "cuda": (4096, 20)}
"""By the kind of device: the size of square matrices, and the number of products in one timing. (On a CPU 4 x 0.27
GFLOP, 20 ms on one core, longer than a core is given to another process; on a GPU 20 x 0.14 TFLOP, 5 ms.)"""

SUMMED_BYTES = {"cpu": 2**20, "cuda": 2**26}


@dataclass(frozen=True)
class Timing:
    """Seconds of one rank, medians: of one matrix product, and of the sum over all ranks."""

    host: str
    product: float
    sum: float


def check_devices(mesh: Mesh) -> list[str]:
    """Times all ranks. Each rank must call it.

    Returns:
        On rank 0, what a user should know: what was measured, and a line for each rank or machine that is SLOW. Nothing
        on other ranks, and nothing for one rank.
    """
    if mesh.world_size == 1:
        return []
    timing = Timing(socket.gethostname(), _product_seconds(mesh.device), _sum_seconds(mesh.device))
    everywhere: list | None = [None] * mesh.world_size if mesh.is_main else None
    dist.gather_object(timing, everywhere)
    return notes(everywhere, mesh.device.type) if everywhere else []


def notes(timings: Sequence[Timing], device_type: str) -> list[str]:
    """What a user should know of the timings of all ranks."""
    products = [timing.product for timing in timings]
    median, slowest = statistics.median(products), max(range(len(products)), key=products.__getitem__)
    size, summed = PRODUCTS[device_type][0], SUMMED_BYTES[device_type]
    sum_seconds = statistics.median(timing.sum for timing in timings)
    bytes_a_second = 2 * (len(timings) - 1) / len(timings) * summed / sum_seconds  # each rank sends it almost twice
    found = [
        f"check: a product of {size} x {size} matrices has {2 * size**3 / median / 1e12:.3g} TFLOP/s on the median "
        f"rank, {2 * size**3 / products[slowest] / 1e12:.3g} on rank {slowest}, the slowest; a sum of "
        f"{summed >> 20} MiB over all takes {1000 * sum_seconds:.1f} ms ({bytes_a_second / 1e9:.3g} GB/s)"
    ]
    slow = {rank for rank, seconds in enumerate(products) if seconds > SLOW * median}
    by_host: dict[str, list[int]] = {}
    for rank, timing in enumerate(timings):
        by_host.setdefault(timing.host, []).append(rank)
    for host, ranks in by_host.items():
        if len(by_host) > 1 and len(ranks) > 1 and slow.issuperset(ranks):
            times = statistics.median(products[rank] for rank in ranks) / median
            found.append(_slow(f"all {len(ranks)} ranks of machine {host} take", times))
            slow.difference_update(ranks)
    for rank in sorted(slow, key=lambda rank: -products[rank])[:MOST_NAMED]:
        found.append(_slow(f"rank {rank} on {timings[rank].host} takes", products[rank] / median))
    if len(slow) > MOST_NAMED:
        found.append(f"and {len(slow) - MOST_NAMED} more ranks are as slow")
    return found


def _slow(who: str, times: float) -> str:
    return (
        f"{who} {times:.1f} times as long as the median rank for a matrix product, and all ranks will wait in each "
        f"step: look for another program there, a device that is hot or capped, or fewer threads"
    )


@torch.no_grad()
def _product_seconds(device: torch.device) -> float:
    size, count = PRODUCTS[device.type]
    bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    left = torch.full((size, size), 0.5, dtype=torch.bfloat16 if bf16 else torch.float32, device=device)
    out = torch.empty_like(left)

    def products() -> None:
        for _ in range(count):
            torch.mm(left, left, out=out)

    return _median_seconds(products, device, most=MOST_SECONDS) / count


@torch.no_grad()
def _sum_seconds(device: torch.device) -> float:
    values = torch.zeros(SUMMED_BYTES[device.type] // 4, device=device)
    return _median_seconds(lambda: dist.all_reduce(values), device, most=math.inf)  # as often on each rank


def _median_seconds(function: Callable[[], None], device: torch.device, most: float) -> float:
    """The median of REPEATS calls after a first one. After `most` seconds there are no more than three."""
    times: list[float] = []
    for _ in range(1 + REPEATS):
        if len(times) > 3 and sum(times) > most:
            break
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
