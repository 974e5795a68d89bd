"""Makes index and manifest for tars of tokens: own tars that lost theirs, or tars from elsewhere.

A sample of such a tar is KEY.tokens.npy (one array of uint16 or uint32). It may have KEY.doclens.npy, with the number
of tokens of each document, and KEY.json, which is not used. Other members are an error.
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
    """A bundle in a tar. `doclens` is None if the tar does not say where documents end. Offsets are in bytes."""

    key: str
    tokens: np.ndarray
    tokens_offset: int
    doclens: np.ndarray | None
    doclens_offset: int


def token_samples(path: Path, file: BinaryIO) -> Iterator[TokenSample]:
    """The bundles of a tar, in order.

    Raises ValueError for damage, for arrays that are not tokens, and for document lengths with another sum.
    """
    parts: dict[str, Member] = {}
    key = None
    for member in members_of(file, path, ALLOWED):
        if member.key != key and "tokens.npy" in parts:
            yield _sample(path, file, parts)
        if member.key != key:
            parts, key = {}, member.key
        if member.extension in parts:
            raise ValueError(f"{path}: member {member.name!r} appears twice in one sample")
        parts[member.extension] = member
        if member.extension.endswith("npy") and member.extension not in ("tokens.npy", "doclens.npy"):
            raise ValueError(f"{path}: member {member.name!r}: only the arrays tokens.npy and doclens.npy are allowed")
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
    """A one-dimensional array, and the offset of its data."""
    file.seek(member.offset)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError, SyntaxError) as error:
        raise ValueError(f"{path}: member {member.name!r} is not an npy array: {error}") from error
    offset = file.tell()
    size = member.offset + member.size - offset
    if len(shape) != 1 or dtype.hasobject or size < 0 or shape[0] * dtype.itemsize != size:
        raise ValueError(
            f"{path}: member {member.name!r} must be a one-dimensional array of numbers, is {shape} of {dtype}"
        )
    return np.frombuffer(file.read(size), dtype=dtype), offset


def split_and_stem(path: Path) -> tuple[str, str]:
    """(split, stem) of a tar: `test-000004.tar` is of split test, a name without a number at its end is of train."""
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
    """Make a corpus of `tars` in `folder`, which has the tokenizer already. Returns its manifest.

    Tars in `folder` itself are not changed; they get an index. Other tars are linked (or copied) if they have doclens
    and the token type of the vocabulary. Otherwise their bundles are written again: then the begin or end token of a
    document tells where documents are.

    Args:
        split: split of all tars; None: given by their names.

    Raises:
        ValueError: an error of `token_samples`, an id that the vocabulary lacks, or a tar in `folder` that must be
            written again.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    found: dict[str, _SplitTars] = {}
    for path in sorted(tars, key=lambda path: path.name):
        name = split or split_and_stem(path)[0]
        into = found.setdefault(name, _SplitTars(name, np.zeros(tokenizer.vocab_size, dtype=np.int64)))
        bundles, usable = _scan_tar(path, tokenizer, dtype, into)
        here = path.resolve().parent == folder.resolve()
        if not usable and here:
            raise ValueError(
                f"{path} cannot be used as it is (no doclens, or tokens that are not {dtype.name}): "
                f"name another folder with --output to write it again"
            )
        into.tars.append((path, bundles if usable else None))
        progress(path.stat().st_size)
    if not any(into.counts.any() for into in found.values()):
        raise ValueError(f"no tokens in {', '.join(map(str, tars)) or 'no tar'}: expected members KEY.tokens.npy")
    splits = {}
    for name, into in sorted(found.items()):
        usable_tars = [(path, bundles) for path, bundles in into.tars if bundles is not None]
        if len(usable_tars) == len(into.tars):
            shards = [_add_shard(folder, path, bundles, dtype) for path, bundles in usable_tars]
            splits[name] = split_summary(shards, into.counts, into.text_bytes)
        else:
            splits[name] = _rewrite(folder, into, tokenizer, shard_bytes, bundle_tokens)
    return write_manifest(folder, tokenizer, splits)


class _SplitTars:
    """The tars of a split. For each tar its bundles, or None if it must be written again."""

    def __init__(self, name: str, counts: np.ndarray):
        self.name, self.counts = name, counts
        self.text_bytes = 0
        self.tars: list[tuple[Path, list[Bundle] | None]] = []


def _scan_tar(path: Path, tokenizer: Tokenizer, dtype: np.dtype, into: _SplitTars) -> tuple[list[Bundle], bool]:
    """Read a tar once. Returns its bundles, and whether it can be used as a shard without a change."""
    bundles, usable = [], True
    with open(path, "rb") as file:
        for sample in token_samples(path, file):
            tokens, doclens = sample.tokens, sample.doclens
            if not len(tokens):
                usable = False
                continue
            if int(tokens.max()) >= tokenizer.vocab_size:
                raise ValueError(
                    f"{path}: bundle {sample.key} has token id {int(tokens.max())}, the tokenizer in "
                    f"{tokenizer.folder} has {tokenizer.vocab_size}: name the right one with --tokenizer"
                )
            into.counts += np.bincount(tokens, minlength=tokenizer.vocab_size)
            into.text_bytes += text_bytes(tokens, tokenizer)
            if doclens is None or doclens.dtype != np.dtype("<u4") or tokens.dtype != dtype:
                usable = False
                continue
            bundles.append(
                Bundle(
                    key=sample.key,
                    tokens_offset=sample.tokens_offset,
                    num_tokens=len(tokens),
                    tokens_crc32=zlib.crc32(tokens.data),
                    doclens_offset=sample.doclens_offset,
                    num_documents=len(doclens),
                    doclens_crc32=zlib.crc32(doclens.data),
                )
            )
    return bundles, usable and bool(bundles)


def text_bytes(tokens: np.ndarray, tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the text of `tokens`."""
    return len(tokenizer.decode(tokens).encode())


def _add_shard(folder: Path, path: Path, bundles: list[Bundle], dtype: np.dtype) -> Shard:
    """Link or copy a tar into the folder, if it is not there, and write its index."""
    target = folder / path.name
    if target.resolve() != path.resolve():
        if target.exists():
            raise ValueError(f"two tars are named {path.name}: rename one")
        try:
            os.link(path.resolve(), target)
        except OSError:
            shutil.copyfile(path, target)
    with open(target, "rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    return write_index(folder, path.stem, dtype, bundles, target.stat().st_size, sha256)


def _rewrite(folder: Path, split: _SplitTars, tokenizer: Tokenizer, shard_bytes: int, bundle_tokens: int) -> dict:
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
    """Tokens of each document, if there are no doclens: documents begin at the begin token, or else end at the end
    token.

    Without any such token all tokens are one document."""
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    if bos is not None and (tokens == bos).any():
        starts = np.flatnonzero(tokens == bos)
    elif eos is not None and (tokens == eos).any():
        starts = np.flatnonzero(tokens == eos) + 1
    else:
        starts = np.zeros(0, dtype=np.int64)
    edges = np.unique(np.concatenate([[0], starts, [len(tokens)]]))
    return np.diff(edges)
