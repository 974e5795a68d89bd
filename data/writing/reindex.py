"""Index and manifest made anew from tars of tokens: our own that lost theirs, or tars that others made.

A sample of such a tar is KEY.tokens.npy (one array of uint16 or uint32), and if there is one KEY.doclens.npy with the
tokens of each document, and KEY.json, of which nothing is needed. All other members are refused.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ingot.data.corpus.manifest import Bundle, Shard, token_dtype
from ingot.data.sources.documents import TRAIN
from ingot.data.sources.tars import Member, members_of
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.writing.writer import CorpusWriter, split_summary, write_index, write_manifest

ALLOWED = ("npy", "json", "txt")
Progress = Callable[[int], None]


@dataclass(frozen=True)
class TokenSample:
    """A bundle as it lies in a tar. `doclens` None: the tar does not say where documents end. Offsets in bytes."""

    key: str
    tokens: np.ndarray
    tokens_offset: int
    doclens: np.ndarray | None
    doclens_offset: int


def token_samples(path: Path, file: BinaryIO) -> Iterator[TokenSample]:
    """The bundles of a tar, in order.

    Raises ValueError for damage, for arrays that are no tokens, and where lengths do not add up.
    """
    parts: dict[str, Member] = {}
    key = None
    for member in members_of(file, path, ALLOWED):
        if member.key != key and "tokens.npy" in parts:
            yield _sample(path, file, parts)
        if member.key != key:
            parts, key = {}, member.key
        if member.extension in parts:
            raise ValueError(f"{path}: member {member.name!r} is there twice in one sample")
        parts[member.extension] = member
        if member.extension.endswith("npy") and member.extension not in ("tokens.npy", "doclens.npy"):
            raise ValueError(f"{path}: member {member.name!r}: of arrays only tokens.npy and doclens.npy are known")
    if "tokens.npy" in parts:
        yield _sample(path, file, parts)


def _sample(path: Path, file: BinaryIO, parts: dict[str, Member]) -> TokenSample:
    member = parts["tokens.npy"]
    tokens, offset = _array(path, file, member)
    if tokens.dtype.newbyteorder("<") not in (np.dtype("<u2"), np.dtype("<u4")):
        raise ValueError(f"{path}: member {member.name!r} holds {tokens.dtype}, tokens are uint16 or uint32")
    doclens, doclens_offset = None, 0
    if "doclens.npy" in parts:
        doclens, doclens_offset = _array(path, file, parts["doclens.npy"])
        if doclens.dtype.kind not in "ui" or int(doclens.sum(dtype=np.int64)) != len(tokens) or (doclens <= 0).any():
            raise ValueError(
                f"{path}: member {parts['doclens.npy'].name!r}: positive lengths must add up to the {len(tokens):,} "
                f"tokens, they give {int(doclens.sum(dtype=np.int64)):,}"
            )
    return TokenSample(member.key, tokens, offset, doclens, doclens_offset)


def _array(path: Path, file: BinaryIO, member: Member) -> tuple[np.ndarray, int]:
    """A one-dimensional array and where its payload begins."""
    file.seek(member.offset)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError, SyntaxError) as error:
        raise ValueError(f"{path}: member {member.name!r} is no npy array: {error}") from error
    offset = file.tell()
    size = member.offset + member.size - offset
    if len(shape) != 1 or dtype.hasobject or size < 0 or shape[0] * dtype.itemsize != size:
        raise ValueError(f"{path}: member {member.name!r} must be one row of numbers, is {shape} of {dtype}")
    return np.frombuffer(file.read(size), dtype=dtype), offset


def split_and_stem(path: Path) -> tuple[str, str]:
    """`train-000004.tar` belongs to the split train; a name that does not end in a number to the training split."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.]*?)[-_.]\d+", path.stem)
    return (match[1] if match else TRAIN), path.stem


def index_corpus(
    folder: Path,
    tars: Sequence[Path],
    tokenizer: Tokenizer,
    *,
    split: str | None = None,
    shard_bytes: int = 256_000_000,
    bundle_tokens: int = 1_000_000,
    progress: Progress = lambda num_bytes: None,
) -> dict:
    """Make `folder`, which holds the tokenizer, a corpus of `tars`; its manifest.

    Tars in `folder` itself get an index beside them and stay as they are. Others are linked (or copied) when they have
    doclens and the type of tokens that the vocabulary calls for; otherwise their bundles are written anew, documents
    being told apart by the token that opens or ends them. `split` None: by the names of the tars.

    Raises ValueError for what `token_samples` refuses, ids that the vocabulary lacks, and tars in `folder` that would
    have to be written anew.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    found: dict[str, _Split] = {}
    for path in sorted(tars, key=lambda path: path.name):
        name = split or split_and_stem(path)[0]
        into = found.setdefault(name, _Split(name, np.zeros(tokenizer.vocab_size, dtype=np.int64)))
        bundles, fits = _survey(path, tokenizer, dtype, into)
        here = path.resolve().parent == folder.resolve()
        if not fits and here:
            raise ValueError(
                f"{path} cannot be used as it is (no doclens, or tokens that are not {dtype.name}): "
                f"name another folder with --output to write it anew"
            )
        into.tars.append((path, bundles if fits else None))
        progress(path.stat().st_size)
    if not any(into.counts.any() for into in found.values()):
        raise ValueError(f"no tokens in {', '.join(map(str, tars)) or 'no tar'}: expected members KEY.tokens.npy")
    splits = {}
    for name, into in sorted(found.items()):
        if all(bundles is not None for _, bundles in into.tars):
            shards = [_take(folder, path, bundles, dtype) for path, bundles in into.tars]
            splits[name] = split_summary(shards, into.counts, into.text_bytes)
        else:
            splits[name] = _write_anew(folder, into, tokenizer, shard_bytes, bundle_tokens)
    return write_manifest(folder, tokenizer, splits)


class _Split:
    """What is known of a split after all its tars were read."""

    def __init__(self, name: str, counts: np.ndarray):
        self.name, self.counts = name, counts
        self.text_bytes = 0
        self.tars: list[tuple[Path, list[Bundle] | None]] = []


def _survey(path: Path, tokenizer: Tokenizer, dtype: np.dtype, into: _Split) -> tuple[list[Bundle], bool]:
    """Read a tar once: its bundles, and whether it can serve as a shard just as it is."""
    bundles, fits = [], True
    with open(path, "rb") as file:
        for sample in token_samples(path, file):
            tokens, doclens = sample.tokens, sample.doclens
            if not len(tokens):
                fits = False
                continue
            if int(tokens.max()) >= tokenizer.vocab_size:
                raise ValueError(
                    f"{path}: bundle {sample.key} has token id {int(tokens.max())}, the tokenizer in "
                    f"{tokenizer.folder} has {tokenizer.vocab_size}: name the right one with --tokenizer"
                )
            into.counts += np.bincount(tokens, minlength=tokenizer.vocab_size)
            into.text_bytes += text_bytes(tokens, tokenizer)
            if doclens is None or doclens.dtype != np.dtype("<u4") or tokens.dtype != dtype:
                fits = False
                continue
            crcs = zlib.crc32(tokens), zlib.crc32(doclens)
            places = sample.tokens_offset, len(tokens), crcs[0], sample.doclens_offset, len(doclens), crcs[1]
            bundles.append(Bundle(sample.key, *places))
    return bundles, fits and bool(bundles)


def text_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text that `tokens` stand for."""
    return len(tokenizer.decode(tokens).encode())


def _take(folder: Path, path: Path, bundles: list[Bundle], dtype: np.dtype) -> Shard:
    """Put a tar into the folder, if it is not there, and its index beside it."""
    place = folder / path.name
    if place.resolve() != path.resolve():
        if place.exists():
            raise ValueError(f"two tars are named {path.name}: rename one")
        try:
            os.link(path.resolve(), place)
        except OSError:
            shutil.copyfile(path, place)
    with open(place, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return write_index(folder, path.stem, dtype, bundles, place.stat().st_size, sha256)


def _write_anew(folder: Path, split: _Split, tokenizer: Tokenizer, shard_bytes: int, bundle_tokens: int) -> dict:
    writer = CorpusWriter(folder, tokenizer, shard_bytes=shard_bytes, bundle_tokens=bundle_tokens).split(split.name)
    for path, _ in split.tars:
        with open(path, "rb") as file:
            for sample in token_samples(path, file):
                doclens = document_lengths(sample.tokens, tokenizer) if sample.doclens is None else sample.doclens
                ends = np.cumsum(doclens)
                for number, (end, length) in enumerate(zip(ends, doclens, strict=True)):
                    writer.add(
                        f"{path.name}/{sample.key}:{number}", sample.tokens[end - length : end].astype(writer.dtype), 0
                    )
    writer.text_bytes = split.text_bytes
    return {**writer.finish(), "text_bytes": split.text_bytes}


def document_lengths(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Where no doclens say it: a document begins at each opening token, or ends at each closing one, or is all."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is not None and (tokens == bos).any():
        starts = np.flatnonzero(tokens == bos)
    elif eos is not None and (tokens == eos).any():
        starts = np.flatnonzero(tokens == eos) + 1
    else:
        starts = np.zeros(0, dtype=np.int64)
    edges = np.unique(np.concatenate([[0], starts, [len(tokens)]]))
    return np.diff(edges)
