"""Options of launcher/prepare.py, what must hold among them, and which of them make another corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ingot.data.sources.ingest import HUB, Input
from ingot.data.sources.source_files import AUTO, Source

RECORD_FILES = ["*.jsonl", "*.jsonl.gz", "*.jsonl.zst", "*.parquet", "*.tar"]


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
    fill_in_the_middle: bool = False
    """Give the trained vocabulary <fim_prefix>, <fim_middle> and <fim_suffix>, which data.fim_rate needs."""


@dataclass
class InputOptions:
    """One of several inputs in a configuration file."""

    path: str
    """File, folder, folder saved by `datasets`, or hf:NAME of the hub (hf:NAME:CONFIGURATION)."""
    split: str = AUTO
    """auto (a hash of the document's name decides; saved datasets keep their own splits), or the name of a split."""
    text_column: str | None = None
    """As the option of this name outside; null: the same as there. So with the three below."""
    where: list[str] | None = None
    """Filters."""
    include: list[str] | None = None
    """Globs of files to take."""
    exclude: list[str] | None = None
    """Globs of files to leave out."""


@dataclass
class PrepareOptions:
    """Options of launcher/prepare.py."""

    output: str
    """Corpus folder to make. One made from the same input and settings before is kept as it is."""
    input: list[str] = field(default_factory=list)
    """Folders and files to read, one or several. A text file is a document; .jsonl, .parquet, .tar hold many."""
    inputs: list[InputOptions] = field(default_factory=list)
    """The same with options for each: path, split, text_column, where, include, exclude. For configuration files."""
    include: list[str] = field(default_factory=lambda: ["*.txt", "*.md", "*.rst", "*.py", *RECORD_FILES])
    """Globs of files to take from folders, matched with the file's name or its path below the folder."""
    exclude: list[str] = field(default_factory=lambda: [".*"])
    """Globs of files and folders to leave out."""
    text_column: str = "text"
    """Column of the text in files of records."""
    where: list[str] = field(default_factory=list)
    """Filters of records, such as lang=en or score>=0.5 (also !=, <, <=, >); all must hold."""
    bad_records: str = "skip"
    """What to do with a broken record (no JSON, no text): skip (and count) or refuse (name the first one and stop)."""
    deduplicate: str = "none"
    """Remove duplicate documents: none, exact (same text but for case and whitespace) or near (exact, and alike)."""
    near_threshold: float = 0.8
    """Estimated Jaccard similarity of runs of five words from which on two documents are near duplicates."""
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
    piece_bytes: int = 64_000_000
    """Target size in bytes of input of a piece: what one worker does at a time, and what a killed run loses."""
    seed: int = 0
    """Seed of the order of the documents."""
    workers: int = 0
    """Processes and threads that tokenize; 0: one for each core. The result does not depend on it."""
    timeout_seconds: float = 300.0
    """With several ranks: how long to wait for one that shows no sign of life."""
    overwrite: bool = False
    """Replace a corpus, or unfinished pieces of one, in the output folder, made from other input or settings."""


# They name or place the work, or share it out, but do not change what comes out.
_NEUTRAL = ("input", "inputs", "output", "include", "exclude", "text_column", "where")
_NEUTRAL += ("workers", "timeout_seconds", "overwrite")


def check(options: PrepareOptions) -> None:
    """Raises ValueError for every option that is out of its range, all at once."""
    problems = []
    if not options.input and not options.inputs:
        problems.append("input is empty: name at least one folder or file")
    if not options.include:
        problems.append("include is empty: give at least one glob")
    if not 0 <= options.validation_fraction < 1:
        problems.append(f"validation_fraction must be in [0, 1), is {options.validation_fraction}")
    if options.tokenizer.model_type not in ("bpe", "unigram"):
        problems.append(f"tokenizer.model_type must be bpe or unigram, is {options.tokenizer.model_type!r}")
    if options.bad_records not in ("skip", "refuse"):
        problems.append(f"bad_records must be skip or refuse, is {options.bad_records!r}")
    if options.deduplicate not in ("none", "exact", "near"):
        problems.append(f"deduplicate must be none, exact or near, is {options.deduplicate!r}")
    if not 0 < options.near_threshold <= 1:
        problems.append(f"near_threshold must be in (0, 1], is {options.near_threshold}")
    for name in ("shard_bytes", "bundle_tokens", "piece_bytes", "timeout_seconds"):
        if getattr(options, name) <= 0:
            problems.append(f"{name} must be positive, is {getattr(options, name)}")
    for name in ("max_bytes", "workers"):
        if getattr(options, name) < 0:
            problems.append(f"{name} must not be negative, is {getattr(options, name)}")
    if options.tokenizer.sample_bytes < 1:
        problems.append(f"tokenizer.sample_bytes must be positive, is {options.tokenizer.sample_bytes}")
    for given in inputs_of(options):
        try:
            given.check()
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))


def inputs_of(options: PrepareOptions) -> list[Input]:
    """All inputs, with what they leave to the options outside filled in."""
    given = [*(InputOptions(path) for path in options.input), *options.inputs]
    own = lambda values: None if values is None else tuple(values)  # noqa: E731
    return [
        Input(
            path=each.path,
            split=each.split,
            text_column=each.text_column or options.text_column,
            where=tuple(options.where if each.where is None else each.where),
            include=own(each.include),
            exclude=own(each.exclude),
        )
        for each in given
    ]


def own_places(output: Path, inputs: Sequence[Input]) -> list[str]:
    """Globs that keep an output folder inside of an input folder from being read as text."""
    output = output.resolve()
    roots = [Path(given.path).resolve() for given in inputs if not str(given.path).startswith(HUB)]
    inside = [output.relative_to(root).as_posix() for root in roots if output.is_relative_to(root)]
    return [place + end for place in inside for end in ("", ".partial", ".replaced")]


def settings(options: PrepareOptions) -> dict:
    """The options that determine the content of the corpus; of files and tokenizers the content counts instead."""
    values = dataclasses.asdict(options)
    for name in _NEUTRAL:
        del values[name]
    if options.tokenizer.path:
        values["tokenizer"] = {}
    else:
        del values["tokenizer"]["path"]
    if options.deduplicate != "near":
        del values["near_threshold"]
    return values


def asked(options: PrepareOptions) -> str:
    """sha256 of the command, before anything is read: the same on every rank."""
    values = [settings(options), options.tokenizer.path, dataclasses.asdict(options)["inputs"], options.input]
    return _hash([*values, options.include, options.exclude, options.text_column, options.where])


def fingerprint(options: PrepareOptions, sources: Sequence[Source], tokenizer_sha256: str | None) -> str:
    """sha256 of everything the content of the corpus follows from: settings, tokenizer, names and contents of files."""
    return _hash([settings(options), tokenizer_sha256, [source.identity for source in sources]])


def cores(options: PrepareOptions) -> int:
    """Cores to use: `workers`, or all of this process's share."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return options.workers or max(1, len(os.sched_getaffinity(0)) // ranks_here)


def _hash(values: list) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
