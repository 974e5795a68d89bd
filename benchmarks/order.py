"""What it costs to open an order and to seek in it, and how exact a mixture is.

    python benchmarks/order.py

Builds the order of synthetic corpora by number of shards and asks for the first batch at slot 0 and at slots far away,
with full and windowed shuffle, one and 64 partitions. Each line runs in a fresh process: the time is that of
constructing and of all seeks together, the memory the growth of the process's peak. Then does the same with a whole
corpus of 100,000 shards, of which only the manifest is there: reading and checking it, opening the Reader, and the
places of the first batch at each seek; the median of several processes, the fastest and the slowest. Last, counts each
corpus of a mixture of five over two periods. Exits with 1 above 1 s or 200 MB at 100,000 shards, or if the mixture is
off by more than one instance anywhere or at all after a period.
"""

import hashlib
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path

import _clone  # noqa: F401
import numpy as np

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.order.order import Order
from ingot.data.order.windowed_shuffle import ShardWindows
from ingot.data.sequences.packing import instances_by_shard
from tests.data.number_tokenizer import number_tokenizer

GLOBAL_BATCH, LENGTH = 1024, 2048
WEIGHTS = [0.5, 0.3, 0.1, 0.07, 0.03]
SEEKS = [0, 10**6, 10**9 + 7, 3 * 10**12]
KINDS = (("full", 1), ("window", 1), ("window", 64))
CASES = [(n, *kind) for n in (1_000, 100_000) for kind in KINDS]
SHARDS, REPEATS = 100_000, 7
TOKENIZER = number_tokenizer(50_304, bos_id=0, eos_id=0, pad_id=1, mask_id=2)


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


def write_manifest(folder: Path, connection) -> None:
    """A corpus as launcher/prepare.py would describe it, without its shards."""
    tokens = np.random.default_rng(0).integers(40_000_000, 60_000_000, SHARDS).tolist()
    shards = [
        {
            "name": f"train-{n:06d}.tar",
            "bytes": 2 * size + 1_000_000,
            "sha256": hashlib.sha256(b"tar %d" % n).hexdigest(),
            "tokens": size,
            "documents": 50_000,
            "index": f"train-{n:06d}.json",
            "index_sha256": hashlib.sha256(b"index %d" % n).hexdigest(),
        }
        for n, size in enumerate(tokens)
    ]
    split = {"shards": shards, "num_tokens": sum(tokens), "num_documents": 50_000 * SHARDS, "text_bytes": 10**13}
    manifest = {
        "format": "ingot-corpus",
        "version": 1,
        "tokenizer": {"sha256": TOKENIZER.files_sha256, "vocab_size": TOKENIZER.vocab_size},
        "splits": {"train": {**split, "unigram_entropy": 7.0}},
    }
    path = folder / "manifest.json"
    path.write_text(json.dumps(manifest, indent=1))
    connection.send(path.stat().st_size)


def measure_corpus(folder: Path, shuffle: str, partitions: int, connection) -> None:
    before, cpu, start = peak_mb(), time.process_time(), time.perf_counter()
    corpus = Corpus.open(folder, "train", check=False)
    opened = time.perf_counter()
    reader = Reader(
        [corpus],
        TOKENIZER,
        ReaderOptions(
            sequence_length=LENGTH,
            seed=1,
            shuffle=shuffle,
            num_partitions=partitions,
            global_batch=GLOBAL_BATCH,
            micro_batch=8,
            threads=0,
        ),
    )
    for slot in SEEKS:
        assert reader.shards_of(slot // GLOBAL_BATCH * GLOBAL_BATCH, None, GLOBAL_BATCH)
    end = time.perf_counter()
    connection.send((opened - start, end - opened, time.process_time() - cpu, peak_mb() - before))


def in_fresh_process(function, *arguments):
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=function, args=(*arguments, sender))
    process.start()
    result = receiver.recv()
    process.join()
    return result


def whole_corpora() -> bool:
    good = True
    with tempfile.TemporaryDirectory() as name:
        # In another process: a process starts with the peak of the one that starts it.
        size = in_fresh_process(write_manifest, Path(name)) / 1e6
        print(f"one corpus of {SHARDS} shards, manifest of {size:.0f} MB, {REPEATS} processes each")
        for shuffle, partitions in KINDS:
            runs = np.array([in_fresh_process(measure_corpus, Path(name), shuffle, partitions) for _ in range(REPEATS)])
            total, memory = runs[:, :2].sum(axis=1), runs[:, 3].max()
            opening, rest, cpu = np.median(runs[:, :3], axis=0)
            print(
                f"{shuffle:>17} {partitions:10} | manifest {opening:.3f} s, reader and seeks {rest:.3f} s, together "
                f"{np.median(total):.3f} ({total.min():.3f} to {total.max():.3f}) s, "
                f"of CPU {cpu:.3f} s, {memory:.0f} MB"
            )
            good &= np.median(total) < 1 and memory < 200
    return good


def mixture() -> tuple[float, bool]:
    """(largest deviation at any slot of two periods, exact after each?)."""
    order = Order([10**6] * len(WEIGHTS), WEIGHTS, 1, True)
    corpus = order.locate(np.arange(2 * order.period))[0]
    counts = np.cumsum(corpus[:, None] == np.arange(len(WEIGHTS)), axis=0)
    due = np.arange(1, len(corpus) + 1)[:, None] * (order.quotas / order.period)
    exact = all(np.array_equal(counts[n * order.period - 1], n * order.quotas) for n in (1, 2))
    return float(np.abs(counts - due).max()), exact


def main() -> int:
    good = True
    print(f"five corpora, global batch {GLOBAL_BATCH}; {len(SEEKS)} seeks, up to slot {SEEKS[-1]:.0e}")
    print(
        f"{'shards':>8} {'shuffle':>8} {'partitions':>10} | "
        f"{'open, s':>8} {'seeks, s':>8} {'next batch, ms':>14} {'MB':>6}"
    )
    for num_shards, shuffle, partitions in CASES:
        opening, seeking, batch, memory = in_fresh_process(measure, num_shards, shuffle, partitions)
        print(
            f"{num_shards:8} {shuffle:>8} {partitions:10} | "
            f"{opening:8.3f} {seeking:8.3f} {batch * 1e3:14.2f} {memory:6.0f}"
        )
        good &= opening + seeking < 1 and memory < 200
    good &= whole_corpora()
    deviation, exact = mixture()
    print(f"mixture {WEIGHTS}: at most {deviation:.2f} instances off; exact after each period: {exact}")
    return 0 if good and deviation <= 1 and exact else 1


if __name__ == "__main__":
    sys.exit(main())
