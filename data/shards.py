"""The corpus folder, as it is read.

    manifest.json           what is here: sizes, checksums, token counts, the tokenizer's hash; written last
    tokenizer/              the tokenizer's own files
    train-000000.tar        plain tar of token bundles: KEY.tokens.npy, KEY.doclens.npy, KEY.json
    train-000000.json       its index: where each bundle's payload lies, and its checksum
    validation-000000.tar   the same for the other split

A bundle holds whole documents, about a million tokens, laid end to end: `tokens` (uint16, or uint32 above 65,536 ids)
and `doclens` (uint32, tokens of each document). The bundles of a shard, one after another, are its token stream.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from data.packing import count_instances

CORPUS_FORMAT, INDEX_FORMAT, VERSION = "ingot-corpus", "ingot-shard-index", 1
MANIFEST = "manifest.json"

MAX_OPEN_FILES = 256  # per process; far below the usual limit of 1,024
MAX_CACHED_STARTS = 4_000_000  # document starts kept in memory, 8 bytes each


class DamagedShard(ValueError):
    """A shard's bytes are not those that were written."""


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 where all ids fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


@dataclass(frozen=True)
class Shard:
    """A line of the manifest. Sizes in bytes; `index` is the name of the index file."""

    name: str
    bytes: int
    sha256: str
    tokens: int
    documents: int
    index: str
    index_sha256: str


@dataclass(frozen=True)
class Bundle:
    """A line of an index. Offsets are those of the payload in the tar, after the npy header, in bytes."""

    key: str
    tokens_offset: int
    num_tokens: int
    tokens_crc32: int
    doclens_offset: int
    num_documents: int
    doclens_crc32: int


class Corpus:
    """One split of a corpus folder, readable at any place, by any number of threads at once."""

    def __init__(self, folder: Path, split: str, manifest: dict):
        self.folder, self.split = folder, split
        content = manifest["splits"][split]
        self.shards = [Shard(**shard) for shard in content["shards"]]
        self.tokenizer_sha256: str = manifest["tokenizer"]["sha256"]
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        self.dtype = token_dtype(self.vocab_size)
        self.num_tokens: int = content["num_tokens"]
        self.num_documents: int = content["num_documents"]
        self.text_bytes: int = content["text_bytes"]  # UTF-8 bytes of the text, for bits per byte
        self.unigram_entropy: float = content["unigram_entropy"]  # nats per token, of this split's own frequencies
        self._lock = threading.Lock()
        self._indexes: dict[int, ShardIndex] = {}
        self._files: OrderedDict[int, _File] = OrderedDict()
        self._starts: OrderedDict[tuple[int, int], np.ndarray] = OrderedDict()
        self._num_cached_starts = 0
        self._verified: set[tuple[int, int]] = set()

    @staticmethod
    def open(folder: str | Path, split: str) -> Corpus:
        """Raises ValueError when the folder is no finished corpus or lacks `split`, or a shard is missing or cut."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        if split not in manifest["splits"]:
            names = ", ".join(manifest["splits"])
            raise ValueError(f"corpus {folder} has no split {split!r}; it has: {names}")
        corpus = Corpus(folder, split, manifest)
        for shard in corpus.shards:
            for name, size in ((shard.name, shard.bytes), (shard.index, None)):
                try:
                    found = os.stat(folder / name).st_size
                except FileNotFoundError:
                    raise ValueError(f"corpus {folder} lacks {name}, which its manifest lists: copy it again") from None
                if size is not None and found != size:
                    raise DamagedShard(f"{folder / name} has {found} bytes, its manifest says {size}: copy it again")
        return corpus

    @property
    def tokenizer_folder(self) -> Path:
        return self.folder / "tokenizer"

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the list of shards, in hex: names the exact content, wherever the folder lies."""
        return hashlib.sha256(json.dumps([vars(s) for s in self.shards], sort_keys=True).encode()).hexdigest()

    def num_instances(self, sequence_length: int) -> int:
        return sum(count_instances(shard.tokens, sequence_length) for shard in self.shards)

    def read(self, shard: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, stop) of a shard's stream, int64, and where documents start among them (int64 offsets from
        `start`, ascending).

        Raises DamagedShard when a bundle's checksum does not fit; each bundle is checked when first read.
        """
        index = self._index(shard)
        if not 0 <= start <= stop <= index.num_tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.shards[shard].name}, which has {index.num_tokens}")
        tokens = np.empty(stop - start, dtype=np.int64)
        boundaries = []
        bundle = int(np.searchsorted(index.token_ends, start, side="right"))
        filled = 0
        while filled < len(tokens):
            origin = int(index.token_ends[bundle - 1]) if bundle else 0
            first = start + filled - origin
            last = min(stop - origin, index.bundles[bundle].num_tokens)
            starts = self._document_starts(shard, bundle)
            offset = index.bundles[bundle].tokens_offset + first * self.dtype.itemsize
            payload = self._read_bytes(shard, offset, (last - first) * self.dtype.itemsize)
            tokens[filled : filled + last - first] = np.frombuffer(payload, dtype=self.dtype)
            low, high = np.searchsorted(starts, (first, last))
            boundaries.append(starts[low:high] + (filled - first))
            filled += last - first
            bundle += 1
        return tokens, np.concatenate(boundaries) if boundaries else np.empty(0, dtype=np.int64)

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._files.clear()

    def _index(self, shard: int) -> ShardIndex:
        index = self._indexes.get(shard)
        if index is None:  # two threads may both load it; the result is the same
            index = self._indexes[shard] = ShardIndex.load(self.folder, self.shards[shard], self.dtype)
        return index

    def _document_starts(self, shard: int, number: int) -> np.ndarray:
        """First token of each document in a bundle, int64. Checks the bundle if it is new."""
        with self._lock:
            starts = self._starts.get((shard, number))
            if starts is not None:
                self._starts.move_to_end((shard, number))
                return starts
        bundle = self._index(shard).bundles[number]
        payload = self._read_bytes(shard, bundle.doclens_offset, bundle.num_documents * 4)
        if (shard, number) not in self._verified:
            tokens = self._read_bytes(shard, bundle.tokens_offset, bundle.num_tokens * self.dtype.itemsize)
            self._check(shard, bundle, "tokens", bundle.tokens_offset, tokens, bundle.tokens_crc32)
            self._check(shard, bundle, "doclens", bundle.doclens_offset, payload, bundle.doclens_crc32)
        ends = np.cumsum(np.frombuffer(payload, dtype="<u4"), dtype=np.int64)
        starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
        with self._lock:
            self._verified.add((shard, number))
            if (shard, number) not in self._starts:
                self._starts[shard, number] = starts
                self._num_cached_starts += len(starts)
            while self._num_cached_starts > MAX_CACHED_STARTS and len(self._starts) > 1:
                self._num_cached_starts -= len(self._starts.popitem(last=False)[1])
        return starts

    def _check(self, shard: int, bundle: Bundle, part: str, offset: int, payload: bytes, crc32: int) -> None:
        if zlib.crc32(payload) != crc32:
            raise DamagedShard(
                f"{self.folder / self.shards[shard].name}: the {part} of bundle {bundle.key} ({len(payload)} bytes at "
                f"offset {offset}) do not match their checksum: copy the file again"
            )

    def _read_bytes(self, shard: int, offset: int, size: int) -> bytes:
        with self._lock:
            file = self._files.get(shard)
            if file is None:
                file = self._files[shard] = _File(self.folder / self.shards[shard].name)
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.popitem(last=False)
            self._files.move_to_end(shard)
        parts = []
        while size:
            part = os.pread(file.descriptor, size, offset)
            if not part:
                raise DamagedShard(f"{file.path} ends at byte {offset}, its index says it goes on")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


class _File:
    """An open file that closes with its last reference: one thread may still read what another has just evicted."""

    def __init__(self, path: Path):
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "descriptor"):
            os.close(self.descriptor)


class ShardIndex:
    """The index of one shard in memory."""

    def __init__(self, bundles: list[Bundle]):
        self.bundles = bundles
        self.token_ends = np.cumsum([b.num_tokens for b in bundles], dtype=np.int64)
        self.num_tokens = int(self.token_ends[-1])

    @staticmethod
    def load(folder: Path, shard: Shard, dtype: np.dtype) -> ShardIndex:
        """Raises DamagedShard when the index is not the one that the manifest lists."""
        path = folder / shard.index
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            raise DamagedShard(f"{path} does not match its checksum in {MANIFEST}: copy the file again")
        index = json.loads(content)
        if (index["format"], index["version"], index["dtype"]) != (INDEX_FORMAT, VERSION, dtype.name):
            raise ValueError(f"{path}: expected {INDEX_FORMAT} version {VERSION} of {dtype.name} tokens")
        return ShardIndex([Bundle(**bundle) for bundle in index["bundles"]])


def read_manifest(folder: str | Path) -> dict:
    """The manifest of a finished corpus folder. Raises ValueError, saying what to do, for anything else."""
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"corpus folder {folder} does not exist: make it with launcher/prepare.py --output {folder}")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError:
        if not any(folder.iterdir()):
            raise ValueError(f"corpus folder {folder} is empty: fill it with launcher/prepare.py") from None
        raise ValueError(
            f"corpus folder {folder} has no {MANIFEST}, so it is unfinished or no corpus: run launcher/prepare.py again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{folder / MANIFEST} is damaged ({error}): run launcher/prepare.py again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != CORPUS_FORMAT:
        raise ValueError(f"{folder / MANIFEST} does not describe a corpus (format {CORPUS_FORMAT})")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"corpus {folder} has format version {manifest.get('version')}, this program reads version {VERSION}: "
            f"make it anew with launcher/prepare.py"
        )
    return manifest
