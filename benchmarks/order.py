"""What it costs to open an order and to seek in it, and how exact a mixture is.

    python benchmarks/order.py

Builds the order of synthetic corpora by number of shards and asks for the first batch at slot 0 and at slots far away,
with full and windowed shuffle, one and 64 partitions. Each line runs in a fresh process: the time is that of
constructing and of all seeks together, the memory the growth of the process's peak. Then counts each corpus of a
mixture of five over two periods. Exits with 1 above 1 s or 200 MB at 100,000 shards, or if the mixture is off by more
than one instance anywhere or at all after a period.
"""

import multiprocessing
import resource
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data.order import Order
from data.packing import instances_by_shard
from data.windows import ShardWindows

GLOBAL_BATCH, LENGTH = 1024, 2048
WEIGHTS = [0.5, 0.3, 0.1, 0.07, 0.03]
SEEKS = [0, 10**6, 10**9 + 7, 3 * 10**12]
CASES = [(n, *kind) for n in (1_000, 100_000) for kind in (("full", 1), ("window", 1), ("window", 64))]


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(num_shards: int, shuffle: str, partitions: int, connection) -> None:
    shard_tokens = np.random.default_rng(0).integers(40_000_000, 60_000_000, num_shards)
    before, start = peak_mb(), time.perf_counter()
    counts = [instances_by_shard(part, LENGTH)[0] for part in np.array_split(shard_tokens, len(WEIGHTS))]
    windows = [ShardWindows(part, 64, partitions, GLOBAL_BATCH) for part in counts]
    order = Order([int(part.sum()) for part in counts], WEIGHTS, 1, shuffle, windows=windows)
    opened = time.perf_counter()
    for slot in SEEKS:
        order.locate(slot + np.arange(GLOBAL_BATCH))
    end = time.perf_counter()
    warm = []
    for step in range(20):
        begin = time.perf_counter()
        order.locate(SEEKS[-1] + step * GLOBAL_BATCH + np.arange(GLOBAL_BATCH))
        warm.append(time.perf_counter() - begin)
    connection.send((opened - start, end - opened, float(np.median(warm)), peak_mb() - before))


def mixture() -> tuple[float, bool]:
    """(largest deviation at any slot of two periods, exact after each?)."""
    order = Order([10**6] * len(WEIGHTS), WEIGHTS, 1, True)
    corpus = order.locate(np.arange(2 * order.period))[0]
    counts = np.cumsum(corpus[:, None] == np.arange(len(WEIGHTS)), axis=0)
    due = np.arange(1, len(corpus) + 1)[:, None] * (order.quotas / order.period)
    exact = all(np.array_equal(counts[n * order.period - 1], n * order.quotas) for n in (1, 2))
    return float(np.abs(counts - due).max()), exact


def main() -> int:
    context, good = multiprocessing.get_context("spawn"), True
    print(f"five corpora, global batch {GLOBAL_BATCH}; {len(SEEKS)} seeks, up to slot {SEEKS[-1]:.0e}")
    print(
        f"{'shards':>8} {'shuffle':>8} {'partitions':>10} | "
        f"{'open, s':>8} {'seeks, s':>8} {'next batch, ms':>14} {'MB':>6}"
    )
    for num_shards, shuffle, partitions in CASES:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=measure, args=(num_shards, shuffle, partitions, sender))
        process.start()
        opening, seeking, batch, memory = receiver.recv()
        process.join()
        print(
            f"{num_shards:8} {shuffle:>8} {partitions:10} | "
            f"{opening:8.3f} {seeking:8.3f} {batch * 1e3:14.2f} {memory:6.0f}"
        )
        good &= opening + seeking < 1 and memory < 200
    deviation, exact = mixture()
    print(f"mixture {WEIGHTS}: at most {deviation:.2f} instances off; exact after each period: {exact}")
    return 0 if good and deviation <= 1 and exact else 1


if __name__ == "__main__":
    sys.exit(main())
