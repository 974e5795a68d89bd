"""How much of a row is padding, or is lost, with each kind of packing, and how long packing takes.

    python benchmarks/packing.py

Prints a row for each distribution of document lengths, documents per shard and sequence length, for a corpus of ten
such shards. Concatenation loses the tail of the corpus, which does not fill a sequence (`per shard`: what it would lose
if sequences ended with their shard); best fit pads; next fit in order, the simple way to keep documents whole, is
printed beside it. `cut` is the share of documents of at most L tokens that concatenation cuts all the same; best fit
cuts none. Exits with 1 if best fit at L = 2048 is below 98% or concatenation loses more than 0.1% anywhere.
"""

import sys
import time

import _clone  # noqa: F401
import numpy as np

from ingot.data.sequences.best_fit import pack
from ingot.data.sequences.packing import count_instances, instances_by_shard

REPEATS, SHARDS = 5, 10


def distributions(number: int, shard: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(shard)
    return {
        "log-normal, mean 1,000": np.maximum(2, draw.lognormal(6.4, 1.0, number)).astype(np.int64),
        "heavy tail (Pareto 1.2)": np.minimum(1_000_000, 100 * (1 + draw.pareto(1.2, number))).astype(np.int64),
        "uniform 2 to 3,000": draw.integers(2, 3001, number),
    }


def next_fit_rows(doclens: np.ndarray, length: int) -> int:
    rows, used = 0, length
    for size in doclens.tolist():
        whole, rest = divmod(size, length)
        if whole:
            rows, used = rows + whole, length
        if rest:
            if used + rest > length:
                rows, used = rows + 1, 0
            used += rest
    return rows


def needlessly_cut(doclens: np.ndarray, length: int) -> float:
    ends = np.cumsum(doclens)
    short = doclens <= length
    return float(((ends - doclens) // length != (ends - 1) // length)[short].mean())


def main() -> int:
    print(
        f"{'documents':24} {'number':>7} {'L':>5} | {'best fit':>9} {'next fit':>9} | {'concat lost':>11} "
        f"{'per shard':>9} {'cut':>5} | {'packing, s (spread)':>20}"
    )
    good = True
    for number in (1_000, 10_000, 100_000):
        shards = [distributions(number, shard) for shard in range(SHARDS)]
        for name, doclens in shards[0].items():
            sizes = np.array([int(shard[name].sum()) for shard in shards])
            for length in (512, 2048, 8192):
                seconds = []
                for _ in range(REPEATS):
                    start = time.perf_counter()
                    bins = pack(doclens, length)
                    seconds.append(time.perf_counter() - start)
                total = int(doclens.sum())
                lost = 1 - instances_by_shard(sizes, length)[0].sum() * length / sizes.sum()
                singly = 1 - sum(count_instances(size, length) for size in sizes) * length / sizes.sum()
                next_fit = total / (next_fit_rows(doclens, length) * length)
                spread = f"{np.median(seconds):.3f} ({min(seconds):.3f}-{max(seconds):.3f})"
                print(
                    f"{name:24} {number:7} {length:5} | {bins.efficiency:9.4%} {next_fit:9.4%} | {lost:11.4%} "
                    f"{singly:9.4%} {needlessly_cut(doclens, length):5.0%} | {spread:>20}"
                )
                good &= lost <= 0.001 and (length != 2048 or bins.efficiency >= 0.98)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
