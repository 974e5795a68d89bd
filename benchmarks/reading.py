"""How fast are tokens read? One core, page cache warm, beside plain webdataset over the same shards.

    python benchmarks/reading.py                        # 64 bundles of a million tokens; about a minute
    python benchmarks/reading.py --length 512 --repeats 9

Plain webdataset reads and decodes whole bundles, one after another. Ingot reads sequences in random order, which
webdataset cannot: by `Corpus.read_into`, with document starts (and, at first touch, the check of every bundle), and by
the whole Reader, which makes batches of them (inputs, labels, positions, cu_seqlens, fingerprint). The sides take
turns; printed are the median of the repeats, the slowest and the fastest. Exits with 1 if the corpus, once checked,
gives less than 200 million tokens/s or 1.3 times plain webdataset.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import _clone  # noqa: F401
import numpy as np

from ingot.data.corpus.shards import Corpus
from ingot.data.loader.reader import Reader, ReaderOptions
from ingot.data.writing.writer import CorpusWriter
from tests.data.number_tokenizer import number_tokenizer

TOKENIZER = number_tokenizer(50_304, bos_id=0, eos_id=0, pad_id=1, mask_id=2)
BOUND, RATIO = 200e6, 1.3


def write_bundles(folder: Path, num_bundles: int, bundle_tokens: int) -> None:
    """Random tokens in documents of log-normal length, about 1,000 on average; 16 bundles a shard."""
    draw = np.random.default_rng(0)
    writer = CorpusWriter(folder, TOKENIZER, shard_bytes=32 * bundle_tokens, bundle_tokens=bundle_tokens)
    left = num_bundles * bundle_tokens
    while left > 0:
        length = int(np.clip(draw.lognormal(6.4, 1.0), 1, 100_000))
        writer.add("train", "document", draw.integers(3, TOKENIZER.vocab_size, length).tolist(), 4 * length)
        left -= length + 1
    writer.finish()


def plain_webdataset(folder: Path) -> int:
    import webdataset

    urls = sorted(str(path) for path in folder.glob("train-*.tar"))
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode()
    return sum(len(sample["tokens.npy"]) for sample in samples)


def random_places(corpus: Corpus, length: int) -> list[tuple[int, int]]:
    """(shard, first token) of every sequence of every shard, in random order."""
    places = [(n, i * length) for n, shard in enumerate(corpus.shards) for i in range((shard.tokens - 1) // length)]
    return [places[i] for i in np.random.default_rng(1).permutation(len(places))]


def random_reads(corpus: Corpus, places: list[tuple[int, int]], length: int) -> int:
    """Reads sequences into the rows of batches, as the Reader does."""
    total, batch = 0, 8
    for begin in range(0, len(places), batch):
        part = places[begin : begin + batch]
        tokens = np.empty((len(part), length), dtype=corpus.dtype)
        for row, (shard, start) in zip(tokens, part, strict=True):
            corpus.read_into(row, shard, start)
        total += tokens.size
    return total


def whole_reader(corpus: Corpus, length: int, objective: str) -> int:
    reader = Reader(
        [corpus],
        TOKENIZER,
        ReaderOptions(
            sequence_length=length,
            objective=objective,
            seed=1,
            shuffle=True,
            global_batch=64,
            micro_batch=8,
            threads=0,
        ),
    )
    return sum(step.num_tokens for step in reader.steps(0, reader.num_instances))


def rate(measure: Callable[[], int]) -> float:
    start = time.perf_counter()
    tokens = measure()
    return tokens / (time.perf_counter() - start)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=int, default=64)
    parser.add_argument("--bundle-tokens", type=int, default=1_000_000)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_bundles(folder, options.bundles, options.bundle_tokens)
        corpus = Corpus.open(folder, "train")
        places = random_places(corpus, options.length)
        sides = {
            "plain webdataset, sequential": lambda: plain_webdataset(folder),
            "Corpus, random, first touch": lambda: random_reads(Corpus.open(folder, "train"), places, options.length),
            "Corpus, random": lambda: random_reads(corpus, places, options.length),
            "whole Reader, clm": lambda: whole_reader(corpus, options.length, "clm"),
            "whole Reader, mlm": lambda: whole_reader(corpus, options.length, "mlm"),
        }
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(options.repeats + 1):
            for side, measure in sides.items():
                if repeat:
                    rates[side].append(rate(measure))
                else:
                    measure()  # brings the files into the page cache, and checks each bundle
    print(f"{corpus.num_tokens:,} tokens, length {options.length}, one core, {options.repeats} repeats")
    for side, found in rates.items():
        low, high = min(found) / 1e6, max(found) / 1e6
        print(f"{side:34}{statistics.median(found) / 1e6:8.1f} million tokens/s   ({low:.1f} to {high:.1f})")
    plain, ours = (statistics.median(rates[s]) for s in ("plain webdataset, sequential", "Corpus, random"))
    print(f"Corpus / plain webdataset: {ours / plain:.2f}")
    return int(ours < BOUND or ours < RATIO * plain)


if __name__ == "__main__":
    sys.exit(main())
