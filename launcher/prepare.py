"""Makes a corpus folder of text files: trains a tokenizer (or takes one), tokenizes, writes shards and manifest.

python launcher/prepare.py --input DIR_OR_FILES... --output CORPUS --tokenizer.vocab_size 8192
python launcher/prepare.py --input DIR_OR_FILES... --output CORPUS --tokenizer.path FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":  # else files of this folder would be found before libraries of the same name
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import dataclasses
import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from launcher.cli import parse
from launcher.exits import bad_input, run_main


@dataclass
class TokenizerOptions:
    """Which tokenizer: an existing one (path), or a SentencePiece model trained on the training split."""

    path: str | None = None
    """Folder of an existing tokenizer (SentencePiece or transformers); the other options here then have no effect."""
    vocab_size: int = 8192
    """Number of token ids to train, special tokens included."""
    model_type: str = "bpe"
    """What to train: bpe or unigram (finer, but several times slower to train)."""
    sample_bytes: int = 16_000_000
    """Bytes of text to train on, at most; a fair sample of the training split."""


@dataclass
class PrepareOptions:
    """Options of launcher/prepare.py."""

    input: list[str]
    """Folders and files to read, one or several; each text file is a document."""
    output: str
    """Corpus folder to make. One made from the same input and settings before is kept as it is."""
    include: list[str] = field(default_factory=lambda: ["*.txt", "*.md", "*.rst", "*.py"])
    """Globs of files to take from folders, matched with the file's name or its path below the folder."""
    exclude: list[str] = field(default_factory=lambda: [".*"])
    """Globs of files and folders to leave out."""
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    """The tokenizer to use or train."""
    validation_fraction: float = 0.01
    """Share of the documents held out as validation split, chosen by a hash of their names; 0: none."""
    max_bytes: int = 0
    """Stop after so many bytes of text, taken as a fair sample of all files; 0: no limit."""
    shard_bytes: int = 256_000_000
    """Target size of a tar in bytes."""
    bundle_tokens: int = 1_000_000
    """Target size of a bundle (one sample of a tar) in tokens."""
    seed: int = 0
    """Seed of the order of the documents."""
    workers: int = 0
    """Threads that tokenize; 0: one for each core. The result does not depend on it."""
    overwrite: bool = False
    """Replace a corpus in the output folder that was made from other input or settings."""


@dataclass
class Summary:
    """What `prepare` made: the finished folder, its manifest, what was left out, and seconds of each phase."""

    folder: Path
    manifest: dict
    skipped: str
    seconds: dict[str, float]
    reused: bool = False

    def __str__(self) -> str:
        lines = [f"corpus {self.folder} {'is up to date' if self.reused else 'is ready'}"]
        for name, split in self.manifest["splits"].items():
            lines.append(
                f"  {name:<11}{split['num_documents']:>9,} documents {split['num_tokens']:>13,} tokens "
                f"{split['text_bytes']:>14,} bytes ({split['num_tokens'] / split['text_bytes']:.3f} tokens per byte), "
                f"unigram entropy {split['unigram_entropy']:.4f} nats per token"
            )
        lines.append(
            f"  vocabulary {self.manifest['tokenizer']['vocab_size']:,}; skipped files: {self.skipped or 'none'}"
        )
        phases = ", ".join(f"{name} {value:.1f}" for name, value in self.seconds.items())
        lines.append(f"  {sum(self.seconds.values()):.1f} seconds ({phases})")
        return "\n".join(lines)


def prepare(options: PrepareOptions) -> Summary:
    """Make the corpus folder, or find it made already. Raises ValueError and OSError for what a user can mend."""
    from data.ingest import find_files, read_documents, scan
    from data.tokenizer import load_tokenizer, train_sentencepiece
    from data.writer import CorpusWriter, finished_or_nothing

    check(options)
    output, clock = Path(options.output), Clock()
    existing = load_tokenizer(options.tokenizer.path) if options.tokenizer.path else None

    exclude = [*options.exclude, *own_places(output, options.input)]
    total = sum(path.stat().st_size for _, path in find_files(options.input, options.include, exclude))
    with progress_bar("reading", total) as bar:
        sources, skipped = scan(
            options.input,
            options.include,
            exclude,
            validation_fraction=options.validation_fraction,
            max_bytes=options.max_bytes,
            seed=options.seed,
            progress=bar.update,
        )
    clock.lap("reading")

    made_from = fingerprint(options, sources, existing.sha256 if existing else None)
    if manifest := unchanged(output, made_from):
        return Summary(output, manifest, skipped.describe(), clock.laps, reused=True)

    with finished_or_nothing(output, options.overwrite) as folder:
        if existing:
            existing.save(folder / "tokenizer")
            tokenizer = load_tokenizer(folder / "tokenizer")
        else:
            texts = (d.text for d in read_documents(s for s in sources if s.split == "train"))
            print(
                f"training a {options.tokenizer.model_type} vocabulary of {options.tokenizer.vocab_size:,}",
                file=sys.stderr,
            )
            tokenizer = train_sentencepiece(
                texts,
                folder / "tokenizer",
                options.tokenizer.vocab_size,
                options.tokenizer.model_type,
                options.tokenizer.sample_bytes,
            )
        clock.lap("vocabulary")

        writer = CorpusWriter(folder, tokenizer, shard_bytes=options.shard_bytes, bundle_tokens=options.bundle_tokens)
        threads = options.workers or len(os.sched_getaffinity(0))
        with progress_bar("tokenizing", sum(s.size for s in sources)) as bar:
            for batch in batches(sources):
                texts = [document.text for document in read_documents(batch)]
                for source, text, ids in zip(batch, texts, tokenizer.encode_batch(texts, threads), strict=True):
                    writer.add(source.split, source.name, ids, len(text.encode()))
                bar.update(sum(source.size for source in batch))
        manifest = writer.finish(made_from=made_from, settings=settings(options))
        clock.lap("tokenizing")
    return Summary(output, manifest, skipped.describe(), clock.laps)


def own_places(output: Path, inputs: list[str]) -> list[str]:
    """Globs that keep an output folder inside of an input folder from being read as text."""
    output = output.resolve()
    inside = [
        output.relative_to(Path(i).resolve()).as_posix() for i in inputs if output.is_relative_to(Path(i).resolve())
    ]
    return [place + end for place in inside for end in ("", ".partial", ".replaced")]


def check(options: PrepareOptions) -> None:
    """Raises ValueError for every option that is out of its range, all at once."""
    problems = []
    if not options.input:
        problems.append("input is empty: name at least one folder or file")
    if not options.include:
        problems.append("include is empty: give at least one glob")
    if not 0 <= options.validation_fraction < 1:
        problems.append(f"validation_fraction must be in [0, 1), is {options.validation_fraction}")
    if options.tokenizer.model_type not in ("bpe", "unigram"):
        problems.append(f"tokenizer.model_type must be bpe or unigram, is {options.tokenizer.model_type!r}")
    for name in ("shard_bytes", "bundle_tokens"):
        if getattr(options, name) < 1:
            problems.append(f"{name} must be positive, is {getattr(options, name)}")
    for name in ("max_bytes", "workers"):
        if getattr(options, name) < 0:
            problems.append(f"{name} must not be negative, is {getattr(options, name)}")
    if options.tokenizer.sample_bytes < 1:
        problems.append(f"tokenizer.sample_bytes must be positive, is {options.tokenizer.sample_bytes}")
    if problems:
        raise ValueError("; ".join(problems))


def settings(options: PrepareOptions) -> dict:
    """The options that determine the content of the corpus."""
    values = dataclasses.asdict(options)
    for name in (
        "input",
        "output",
        "include",
        "exclude",
        "workers",
        "overwrite",
    ):  # files count, not how they were named
        del values[name]
    if options.tokenizer.path:
        values["tokenizer"] = {}  # its hash counts, not its place
    else:
        del values["tokenizer"]["path"]
    return values


def fingerprint(options: PrepareOptions, sources: list, tokenizer_sha256: str | None) -> str:
    """sha256 of everything the content of the corpus follows from: settings, tokenizer, names and contents of files."""
    content = [settings(options), tokenizer_sha256, [(s.name, s.size, s.sha256, s.split) for s in sources]]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def unchanged(output: Path, made_from: str) -> dict | None:
    """The manifest of the corpus in `output`, if it is whole and was made from just this."""
    from data.shards import MANIFEST, read_manifest
    from data.tokenizer import hash_files, tokenizer_files

    if not (output / MANIFEST).is_file():
        return None
    try:
        manifest = read_manifest(output)
    except ValueError:  # to be replaced or refused like any other corpus
        return None
    if manifest.get("made_from") != made_from:
        return None
    sizes = {s["name"]: s["bytes"] for split in manifest["splits"].values() for s in split["shards"]}
    present = all((output / name).is_file() and (output / name).stat().st_size == size for name, size in sizes.items())
    same = hash_files(tokenizer_files(output / "tokenizer")) == manifest["tokenizer"]["sha256"]
    return manifest if present and same else None


def batches(sources: list, num_bytes: int = 4_000_000) -> Iterator[list]:
    """Runs of consecutive sources with about `num_bytes` each: enough to keep all threads busy, little to hold."""
    batch, size = [], 0
    for source in sources:
        batch.append(source)
        size += source.size
        if size >= num_bytes:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class Clock:
    """Seconds from lap to lap."""

    def __init__(self):
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now


def progress_bar(what: str, total_bytes: int):
    from tqdm import tqdm

    return tqdm(desc=what, total=total_bytes, unit="B", unit_scale=True, file=sys.stderr, dynamic_ncols=True)


def spread_lists(argv: list[str], names: tuple[str, ...] = ("input", "include", "exclude")) -> list[str]:
    """`--input a b` as `--input=["a", "b"]` and `--overwrite` as `--overwrite=true`: the parser wants one word each."""
    result: list[str] = []
    rest = deque(argv)
    while rest:
        word = rest.popleft()
        name, equals, value = word.removeprefix("--").partition("=")
        if word.startswith("--") and equals and name in names and not value.startswith("["):
            result.append(f"--{name}={json.dumps([value])}")
            continue
        values: list[str] = []
        if word.startswith("--") and not equals and name in (*names, "overwrite"):
            while rest and not rest[0].startswith("--"):
                values.append(rest.popleft())
            if name == "overwrite":
                word += "=" + (values[0] if values else "true")
            else:
                word += "=" + (values[0] if values and values[0].startswith("[") else json.dumps(values))
        result.append(word)
    return result


def main(argv: list[str]) -> int:
    with bad_input():
        print(prepare(parse(PrepareOptions, spread_lists(argv), __doc__)))
    return 0


if __name__ == "__main__":
    run_main(main)
