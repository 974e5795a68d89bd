"""Checks every byte of a corpus folder, and says what is wrong and where."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ingot.data.corpus.manifest import (
    MANIFEST,
    Bundle,
    Shard,
    ShardIndex,
    Split,
    read_manifest,
    read_split,
    token_dtype,
)
from ingot.data.corpus.storage import open_storage
from ingot.data.tokenizers.identity import hash_files
from ingot.data.tokenizers.load import load_tokenizer
from ingot.data.tokenizers.tokenizer import tokenizer_files
from ingot.data.writing.reindex import token_samples
from ingot.data.writing.writer import split_summary


def verify_corpus(folder: str | Path, progress: Callable[[int], None] = lambda num_bytes: None) -> list[str]:
    """The problems of a corpus, one line each; an empty list if it has none.

    Checks: the manifest; the hash and size of the tokenizer; for each shard its size, sha256, members, index, checksums
    of all bundles, document lengths and range of ids; the totals; files that are not listed. `progress` gets bytes.

    Raises ValueError if there is no corpus in the folder.
    """
    folder = Path(folder)
    manifest = read_manifest(folder)
    problems = _check_tokenizer(folder, manifest)
    listed: set[str] = set()
    totals = [0, 0]
    for name in manifest["splits"]:
        try:
            split = read_split(manifest, name, str(folder / MANIFEST))
        except ValueError as error:
            problems.append(str(error))
            continue
        listed |= {file for shard in split.shards for file in (shard.name, shard.index)}
        totals = [totals[0] + split.num_tokens, totals[1] + split.num_documents]
        problems += _check_split(folder, name, split, manifest["tokenizer"]["vocab_size"], progress)
    for key, value in zip(("num_tokens", "num_documents"), totals, strict=True):
        if manifest.get(key) != value:
            problems.append(f"{folder / MANIFEST}: {key} is {manifest.get(key)}, its splits have {value}")
    for path in sorted(folder.glob("*.tar")):
        if path.name not in listed:
            problems.append(f"{path} is not listed in {MANIFEST}")
    return problems


def _check_tokenizer(folder: Path, manifest: dict) -> list[str]:
    path = folder / "tokenizer"
    expected = manifest["tokenizer"]
    if not path.is_dir():
        return [f"{path} is missing"]
    if hash_files(tokenizer_files(path)) != expected.get("sha256"):
        return [f"{path} is not the tokenizer of this corpus (its sha256 differs from {MANIFEST})"]
    try:
        tokenizer = load_tokenizer(path)
    except ValueError as error:
        return [str(error)]
    problems = []
    for key in ("vocab_size", "bos_id", "eos_id", "pad_id", "mask_id"):
        if getattr(tokenizer, key) != expected.get(key):
            found = getattr(tokenizer, key)
            problems.append(f"{folder / MANIFEST}: tokenizer.{key} is {expected.get(key)}, the tokenizer has {found}")
    return problems


def _check_split(folder: Path, name: str, split: Split, vocab_size: int, progress: Callable[[int], None]) -> list[str]:
    problems: list[str] = []
    counts = np.zeros(vocab_size, dtype=np.int64)
    for shard in split.shards:
        problems += _check_shard(folder, shard, vocab_size, counts)
        progress(shard.bytes)
    documents = sum(shard.documents for shard in split.shards)
    if documents != split.num_documents:
        problems.append(f"{folder / MANIFEST}: {name} lists {split.num_documents} documents, its shards {documents}")
    if not problems and split.shards:
        entropy = split_summary(split.shards, counts, 0)["unigram_entropy"]
        if abs(entropy - split.unigram_entropy) > 1e-9:
            problems.append(f"{folder / MANIFEST}: unigram_entropy of {name} is {split.unigram_entropy}, not {entropy}")
    return problems


def _check_shard(folder: Path, shard: Shard, vocab_size: int, counts: np.ndarray) -> list[str]:
    path, dtype = folder / shard.name, token_dtype(vocab_size)
    problems: list[str] = []
    try:
        bundles = ShardIndex.load(open_storage(folder), shard, dtype).bundles
    except ValueError as error:
        problems.append(str(error))
        bundles = None
    if not path.is_file():
        return [*problems, f"{path} is missing"]
    if path.stat().st_size != shard.bytes:
        problems.append(f"{path} has {path.stat().st_size:,} bytes, {MANIFEST} says {shard.bytes:,}")
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
            problems.append(f"{path} does not match its sha256 in {MANIFEST}")
        if bundles is not None:
            problems += _check_payloads(path, file, bundles, dtype)
        problems += _check_samples(path, file, bundles, shard, dtype, counts)
    return problems


def _check_payloads(path: Path, file: BinaryIO, bundles: list[Bundle], dtype: np.dtype) -> list[str]:
    """Check what the reader uses: the bytes at the offsets of the index."""
    problems = []
    for bundle in bundles:
        for part, offset, size, crc32 in (
            ("tokens", bundle.tokens_offset, bundle.num_tokens * dtype.itemsize, bundle.tokens_crc32),
            ("doclens", bundle.doclens_offset, bundle.num_documents * 4, bundle.doclens_crc32),
        ):
            file.seek(offset)
            content = file.read(size)
            if len(content) != size or zlib.crc32(content) != crc32:
                problems.append(
                    f"{path}: the {part} of bundle {bundle.key} ({size:,} bytes at offset {offset:,}) do not match "
                    f"their checksum"
                )
    return problems


def _check_samples(
    path: Path, file: BinaryIO, bundles: list[Bundle] | None, shard: Shard, dtype: np.dtype, counts: np.ndarray
) -> list[str]:
    """Check what other readers of the tar see: its members."""
    problems: list[str] = []
    found, num_documents = [], 0
    try:
        for sample in token_samples(path, file):
            if sample.tokens.dtype != dtype:
                problems.append(f"{path}: bundle {sample.key} holds {sample.tokens.dtype}, not {dtype.name}")
            elif len(sample.tokens) and int(sample.tokens.max()) >= len(counts):
                highest = int(sample.tokens.max())
                problems.append(f"{path}: bundle {sample.key} has token id {highest}, the vocabulary {len(counts)} ids")
            else:
                counts += np.bincount(sample.tokens, minlength=len(counts))
            if sample.doclens is None:
                problems.append(f"{path}: bundle {sample.key} has no doclens")
            else:
                num_documents += len(sample.doclens)
            found.append((sample.key, sample.tokens_offset, len(sample.tokens), sample.doclens_offset))
    except ValueError as error:
        return [*problems, str(error)]
    if bundles is not None and found != [(b.key, b.tokens_offset, b.num_tokens, b.doclens_offset) for b in bundles]:
        problems.append(f"{path}: its members are not where {shard.index} says")
    if num_documents != shard.documents:
        problems.append(f"{path} holds {num_documents} documents, {MANIFEST} says {shard.documents}")
    return problems
