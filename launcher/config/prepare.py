"""Options of launcher/prepare.py, the checks between them, and which of them change the corpus."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from ingot.data.sources.file_parts import AUTO, FilePart
from ingot.data.sources.ingest import HUB, Input
from ingot.launcher.config.schema.types import (
    NonNegativeInt,
    PositiveInt,
    PositiveShare,
    Range,
    Seed,
    UnitIntervalBelowOne,
    Workers,
)

COMPRESSED_FILES = [f"*.{name}.{end}" for name in ("txt", "jsonl") for end in ("gz", "xz", "zst")]
TEXT_FILES = ["*.txt", "*.md", "*.rst", "*.py"]
RECORD_FILES = ["*.jsonl", "*.parquet", "*.tar"]
VocabularySize = Annotated[int, Range(1, 10**7)]
# A bundle ends with the document that fills it, and its tokens, of four bytes each, may have 2^30 bytes.
BundleTokens = Annotated[int, Range(1, 50_000_000)]
MAX_DOCUMENT_BYTES = 10_000_000
DocumentBytes = Annotated[int, Range(1_000, 200_000_000)]


@dataclass(frozen=True)
class TokenizerOptions:
    """The tokenizer: an existing one (path), or a new SentencePiece model that is trained on the training split."""

    path: str | None = None
    """An existing tokenizer: a folder (SentencePiece or transformers), a name on the hub, or a file: tokenizer.json, a
    .model of SentencePiece, vocab.json with merges.txt, encoder.json with vocab.bpe, vocab.txt. The other options of
    this section then have no effect."""
    vocab_size: VocabularySize = 8192
    """Number of token ids, including special tokens."""
    model_type: Literal["bpe", "unigram"] = "bpe"
    """Kind of model to train. unigram is finer, but takes several times longer to train."""
    sample_bytes: PositiveInt = 16_000_000
    """Maximum bytes of text to train on; an even sample of the training split."""
    fill_in_the_middle: bool = False
    """Add the tokens <fim_prefix>, <fim_middle> and <fim_suffix>, which data.fim_rate needs."""


@dataclass(frozen=True)
class InputOptions:
    """One of several inputs in a configuration file."""

    path: str
    """File, folder, folder saved by `datasets`, or hf:NAME of the hub (hf:NAME:CONFIGURATION)."""
    split: str = AUTO
    """auto: a hash of the document's name chooses train or validation; saved datasets keep their own splits. Or the
    name of a split for all documents."""
    text_column: str | None = None
    """Column of the text; null: as the option text_column."""
    where: list[str] | None = None
    """Filters of records; null: as the option where."""
    include: list[str] | None = None
    """Globs of files to take; null: as the option include."""
    exclude: list[str] | None = None
    """Globs of files to leave out; null: as the option exclude."""


@dataclass(frozen=True)
class PrepareOptions:
    """Options of launcher/prepare.py."""

    output: str
    """Corpus folder to make. A corpus that was made from the same input and settings is kept as it is."""
    input: list[str] = field(default_factory=list)
    """Folders and files to read. A text file is one document; .jsonl, .parquet and .tar hold many. Text and .jsonl may
    be compressed: .gz, .xz, .zst."""
    inputs: list[InputOptions] = field(default_factory=list)
    """Inputs with options for each, for configuration files: a list of {path, split, text_column, where, include,
    exclude}."""
    include: list[str] = field(default_factory=lambda: [*TEXT_FILES, *RECORD_FILES, *COMPRESSED_FILES])
    """Globs of files to take from folders. They are matched with the file's name and with its path below the folder."""
    exclude: list[str] = field(default_factory=lambda: [".*"])
    """Globs of files and folders to leave out."""
    text_column: str = "text"
    """Column of the text in files of records."""
    where: list[str] = field(default_factory=list)
    """Filters of records, such as lang=en or score>=0.5 (also !=, <, <=, >); all must hold."""
    split_documents: str | None = None
    """Text that separates documents inside a text file, such as <|endoftext|>; \\n is a new line, so \\n\\n divides at
    blank lines. Null: a text file is one document."""
    max_document_bytes: DocumentBytes = MAX_DOCUMENT_BYTES
    """A longer document, of any kind of file, is cut into several, at the end of a line if there is one. The report
    counts these. A tokenizer of transformers may need 100 times this size."""
    bad_records: Literal["skip", "refuse"] = "skip"
    """What to do with a broken record (no JSON, no text, or more than 256 MB). skip: count it. refuse: name the first
    one and stop."""
    deduplicate: Literal["none", "exact", "near"] = "none"
    """Which duplicate documents to remove. exact: the same text except for case and white space. near: also similar
    text."""
    near_threshold: PositiveShare = 0.8
    """Two documents are near duplicates from this estimated Jaccard similarity of their 5-word sequences on."""
    tokenizer: TokenizerOptions = field(default_factory=TokenizerOptions)
    """The tokenizer to use or train."""
    validation_fraction: UnitIntervalBelowOne = 0.01
    """Share of the documents in the validation split, chosen by a hash of their names; 0 makes no such split. Of a text
    file that is alone it is the end."""
    max_bytes: NonNegativeInt = 0
    """Stop after so many bytes of text, an even sample of all files; 0: no limit."""
    shard_bytes: PositiveInt = 256_000_000
    """Target size of a tar in bytes."""
    bundle_tokens: BundleTokens = 1_000_000
    """Target size of a bundle (one sample of a tar) in tokens."""
    piece_bytes: PositiveInt = 64_000_000
    """Target size of a piece in bytes of input. One worker does a piece at a time, and a killed run loses at most the
    pieces in work."""
    seed: Seed = 0
    """Seed of the order of the documents."""
    workers: Workers = 0
    """Number of processes and threads that tokenize; 0: one per core. The result does not depend on it."""
    timeout_seconds: Annotated[float, Range(0, 10**7, open_low=True)] = 300.0
    """With several ranks: how long to wait for a rank that shows no sign of life."""
    overwrite: bool = False
    """Replace a corpus in the output folder, or unfinished pieces of one, that was made from other input or
    settings."""


# They say where to read and write and how the work is distributed; they do not change the corpus.
_NEUTRAL = [
    *("input", "inputs", "output", "include", "exclude", "text_column", "where"),
    *("workers", "timeout_seconds", "overwrite"),
]


def check(options: PrepareOptions) -> None:
    """Looks for what does not fit together.

    Raises:
        ValueError: all problems at once.
    """
    problems = []
    if not options.input and not options.inputs:
        problems.append("input is empty: name at least one folder or file")
    if options.split_documents == "":
        problems.append("split_documents is empty: give the text that separates documents, or null")
    if not options.include:
        problems.append("include is empty: give at least one glob")
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
    # Corpora that were made before these options are up to date where they have no effect.
    if options.split_documents is None:
        del values["split_documents"]
    if options.max_document_bytes == MAX_DOCUMENT_BYTES:
        del values["max_document_bytes"]
    return values


def separator_of(options: PrepareOptions) -> str:
    """The text between two documents of a text file; empty if such a file is one document."""
    return (options.split_documents or "").replace("\\n", "\n").replace("\\t", "\t")


def asked(options: PrepareOptions) -> str:
    """sha256 of the command, before anything is read: the same on every rank."""
    values = [settings(options), options.tokenizer.path, dataclasses.asdict(options)["inputs"], options.input]
    return _hash([*values, options.include, options.exclude, options.text_column, options.where])


def fingerprint(options: PrepareOptions, sources: Sequence[FilePart], tokenizer_sha256: str | None) -> str:
    """sha256 of everything the content of the corpus follows from: settings, tokenizer, names and contents of files."""
    return _hash([settings(options), tokenizer_sha256, [source.identity for source in sources]])


def cores(options: PrepareOptions) -> int:
    """Cores to use: `workers`, or all of this process's share."""
    ranks_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return options.workers or max(1, len(os.sched_getaffinity(0)) // ranks_here)


def _hash(values: list) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
