"""How fast a corpus is tokenized, beside the tokenizer library alone: both sides in one run, on one core.

python benchmarks/tokenizing.py --input DIR_OR_FILES... [--tokenizer FOLDER] [--vocab_size 8192] [--repeats 5]

Bare: `SentencePieceProcessor.encode` over the texts, already in memory, ids thrown away. Ingot: one piece from the
files on disk to the finished file of bundles, so with reading, parsing, framing, checksums and fsync. The sides take
turns; printed are medians and the spread of the repeats, in MB of UTF-8 text per second.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import _clone  # noqa: F401

from ingot.data.sources.documents import Skipped
from ingot.data.sources.ingest import scan
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.training import train_sentencepiece
from ingot.data.writing.pieces import PreparationPlan, tokenize_piece
from ingot.launcher.config.prepare import PrepareOptions


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True)
    parser.add_argument("--text_column", default="text")
    parser.add_argument("--max_bytes", type=int, default=8_000_000)
    parser.add_argument("--tokenizer", help="SentencePiece folder; without it a BPE is trained on the input")
    parser.add_argument("--vocab_size", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})

    sources, _ = scan(
        options.input, PrepareOptions("").include, [".*"], validation_fraction=0.0, max_bytes=options.max_bytes
    )
    plan = PreparationPlan("", "", "", 1, 0.0, 1_000_000, False, "none", 1.0, pieces=[sources])
    texts = [document.text for _, document in plan.documents(0, Skipped())]
    megabytes = sum(len(text.encode()) for text in texts) / 1e6
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if options.tokenizer:
            tokenizer = load_tokenizer(options.tokenizer)
        else:
            tokenizer = train_sentencepiece(texts, folder / "tokenizer", options.vocab_size)
        model = tokenizer._model
        sides = {
            "bare sentencepiece": lambda: [model.encode(text) for text in texts],
            "bare, one batch": lambda: model.encode(texts, num_threads=1),
            "ingot, whole piece": lambda: tokenize_piece(plan, 0, folder, tokenizer),
        }
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(options.repeats):
            for name, side in sides.items():
                began = time.perf_counter()
                side()
                speeds[name].append(megabytes / (time.perf_counter() - began))
    print(
        f"{len(texts):,} documents, {megabytes:.2f} MB, vocabulary {tokenizer.vocab_size:,}, {options.repeats} repeats"
    )
    for name, values in speeds.items():
        print(f"{name:<20}{statistics.median(values):>8.2f} MB/s  ({min(values):.2f} to {max(values):.2f})")
    ours = statistics.median(speeds["ingot, whole piece"])
    best = max(statistics.median(values) for name, values in speeds.items() if name.startswith("bare"))
    print(f"ingot / the faster bare side: {ours / best:.2f}")


if __name__ == "__main__":
    main()
