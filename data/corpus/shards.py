"""The corpus folder, as it is read.

    manifest.json           what is here: sizes, checksums, token counts, the tokenizer's hash; written last
    tokenizer/              the tokenizer's own files
    train-000000.tar        plain tar of token bundles: KEY.tokens.npy, KEY.doclens.npy, KEY.json
    train-000000.json       its index: where each bundle's payload lies, and its checksum
    validation-000000.tar   the same for the other split

A bundle holds whole documents, about a million tokens, laid end to end: `tokens` (uint16, or uint32 above 65,536 ids)
and `doclens` (uint32, tokens of each document). The bundles of a shard, one after another, are its token stream.

A tar is never parsed: bytes are read where the index says, and believed when they fit its checksum.
"""

from __future__ import annotations

import errno
import hashlib
import tempfile
import threading
import zlib
from bisect import bisect_right
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from ingot.data.corpus.bundles import ChecksumMismatch, VerifiedBundle, read_bundle
from ingot.data.corpus.cache import Cache
from ingot.data.corpus.manifest import (
    CORPUS_FORMAT,  # noqa: F401  (those who write corpora find it here)
    INDEX_FORMAT,  # noqa: F401  (those who write corpora find it here)
    MANIFEST,
    VERSION,  # noqa: F401  (those who write corpora find it here)
    Bundle,  # noqa: F401
    ShardIndex,
    read_manifest,
    read_split,
    token_dtype,
)
from ingot.data.corpus.quarantine import WHOLE_SHARD, Damage, DamagedShard, Quarantine
from ingot.data.corpus.storage import LocalFolder, OpenFile, RemoteFile, RemoteFolder, open_storage
from ingot.data.tokenizers.tokenizer import TOKENIZER_FILES

MAX_OPEN_FILES = 256  # per process; far below the usual limit of 1,024
MAX_CACHED_STARTS = 4_000_000  # document starts kept in memory, 8 bytes each
MAX_CACHED_BUNDLES = 500_000  # lines of indexes kept in memory, some 300 bytes each
# Of which tokens of a corpus an instance is (data/sequences), kept with each run; 1 dropped the tail of each shard.
PACKING_VERSION = 2
ATTEMPTS = 2  # at a bundle: as it is, and fetched again
MAX_TOKENIZER_BYTES = 2**28  # of one of its files

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # trouble of this process, no damage


class Corpus:
    """One split of a corpus folder, readable at any place, by any number of threads at once.

    Remote shards are read from `cache`, or, without one, range by range. Bundles in `quarantine` are not read, and what
    turns out to be damaged is put there.
    """

    def __init__(
        self,
        storage: LocalFolder | RemoteFolder,
        split: str,
        manifest: dict,
        cache: Cache | None = None,
        quarantine: Quarantine | None = None,
    ):
        self.storage, self.split, self.folder = storage, split, str(storage)
        content = read_split(manifest, split, storage.locate(MANIFEST))
        self.shards = content.shards
        self.tokenizer_sha256: str = manifest["tokenizer"]["sha256"]
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        self.dtype = token_dtype(self.vocab_size)
        self._width = self.dtype.itemsize
        self.num_tokens, self.num_documents = content.num_tokens, content.num_documents
        self.text_bytes = content.text_bytes  # UTF-8 bytes of the text, for bits per byte
        self.unigram_entropy = content.unigram_entropy  # nats per token, of this split's own frequencies
        self.cache = cache if isinstance(storage, RemoteFolder) else None
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self._version = self.quarantine.version
        self._lock = threading.Lock()
        self._verifying = [threading.Lock() for _ in range(64)]  # by shard: one verdict on each bundle
        # Plain dicts, read without a lock; they lose their oldest entries, under the lock.
        self._indexes: dict[int, ShardIndex] = {}
        self._files: dict[int, OpenFile | RemoteFile] = {}
        self._bundles: dict[tuple[int, int], VerifiedBundle] = {}
        self._verified: set[tuple[int, int]] = set()
        self._num_cached_starts = self._num_cached_bundles = 0

    @staticmethod
    def open(
        folder: str | Path,
        split: str,
        *,
        check: bool = True,
        cache: Cache | None = None,
        quarantine: Quarantine | None = None,
    ) -> Corpus:
        """The corpus at a path or URL. With `check`, a local one must have all its shards, in full length.

        Raises ValueError when it is no finished corpus, lacks `split` or (`check`) a shard, or cannot be understood.
        """
        storage = open_storage(folder)
        manifest = read_manifest(storage)
        if split not in manifest["splits"]:
            names = ", ".join(manifest["splits"])
            raise ValueError(f"corpus {folder} has no split {split!r}; it has: {names}")
        corpus = Corpus(storage, split, manifest, cache, quarantine)
        if check and isinstance(storage, LocalFolder):
            corpus._check_files(storage.names())
        return corpus

    def _check_files(self, there: set[str]) -> None:
        for name, index, size in zip(self.shards.names, self.shards.indexes, self.shards.bytes.tolist(), strict=True):
            found = self.storage.size(name) if name in there else None
            if found is None or index not in there:
                lacking = name if found is None else index
                raise ValueError(f"corpus {self.folder} lacks {lacking}, which its manifest lists: copy it again")
            if found != size:
                where = self.storage.locate(name)
                raise DamagedShard(f"{where} has {found} bytes, not the {size} listed: copy it again")

    @cached_property
    def tokenizer_folder(self) -> Path:
        """A local folder; of a remote corpus a copy, which goes with this object."""
        if isinstance(self.storage, LocalFolder):
            return self.storage.path / "tokenizer"
        self._temporary = tempfile.TemporaryDirectory(prefix="ingot-tokenizer-")
        for name in TOKENIZER_FILES:
            try:
                content = self.storage.read(f"tokenizer/{name}", MAX_TOKENIZER_BYTES)
            except FileNotFoundError:
                continue
            (Path(self._temporary.name) / name).write_bytes(content)
        return Path(self._temporary.name)

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the list of shards and of how sequences are cut from it, in hex: names the exact content of any
        sequence, wherever the folder lies."""
        return hashlib.sha256(b"packing %d " % PACKING_VERSION + self.shards.digest()).hexdigest()

    def read(self, shard: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, stop) of a shard's stream, of `dtype`, and where documents start among them: int64 indices,
        ascending. Raises what `read_into` does."""
        tokens = np.empty(max(0, stop - start), dtype=self.dtype)
        starts, shift = self.read_into(tokens, shard, start)
        return tokens, starts - shift

    def read_into(self, tokens: np.ndarray, shard: int, start: int, whole: bool = True) -> tuple[np.ndarray, int]:
        """Fill `tokens` (1-D, contiguous, of `dtype`) from token `start` of a shard's stream on. Without `whole` a
        remote shard is not brought into the cache for it.

        Returns where documents start among them: ascending int64, and what to subtract from these to get indices of
        `tokens` (whoever reads many sequences does that for all at once).

        Raises DamagedShard when a bundle is in quarantine, or cannot be read, or does not fit its checksum, which is
        looked at when the bundle is first read; it is in quarantine then. `tokens` may hold anything.
        """
        if self._version != self.quarantine.version:
            self._forget()
        index = self._indexes.get(shard) or self._load_index(shard)
        number = bisect_right(index.token_ends, start)
        sound, file = self._bundles.get((shard, number)), self._files.get(shard)
        if sound is not None and file is not None and start >= 0 and start + len(tokens) <= sound.end:
            first = start - sound.origin
            if file.fill(tokens, sound.offset + first * self._width):
                return sound.between(first, first + len(tokens)), first
        return self._read_parts(tokens, shard, start, index, number, whole)

    def _read_parts(self, tokens: np.ndarray, shard: int, start: int, index: ShardIndex, number: int, whole: bool):
        """`read_into` for what is not open yet, lies in several bundles, or is far away."""
        stop = start + len(tokens)
        if not 0 <= start <= stop <= index.num_tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.shards[shard].name}, which has {index.num_tokens}")
        boundaries = [np.empty(0, dtype=np.int64)]
        begin = start
        while begin < stop:
            sound = self._bundles.get((shard, number)) or self._load_bundle(shard, number, whole)
            first, last = begin - sound.origin, min(stop, sound.end) - sound.origin
            part = tokens[begin - start : begin - start + last - first]
            offset = sound.offset + first * self._width
            try:
                (self._files.get(shard) or self._file(shard, whole)).read_into(part, offset)
            except OSError:
                self._reload_bundle(shard, number, whole).read_into(part, offset)
            boundaries.append(sound.between(first, last) - (start - sound.origin))
            begin += last - first
            number += 1
        return np.concatenate(boundaries), 0

    def document_lengths(self, shard: int) -> np.ndarray:
        """Tokens of each document of a shard, int64: a bundle whose lengths cannot be read counts as one document."""
        lengths = []
        for bundle in (self._indexes.get(shard) or self._load_index(shard)).bundles:
            doclens = np.empty(bundle.num_documents, dtype="<u4")
            try:
                self._file(shard).read_into(doclens, bundle.doclens_offset)
            except OSError:
                doclens = doclens[:0]
            if zlib.crc32(doclens) != bundle.doclens_crc32:
                doclens = np.array([bundle.num_tokens])  # reading from it will say that it is damaged
            lengths.append(doclens.astype(np.int64))
        return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)

    def prefetch_shard(self, shard: int) -> bool:
        """Begin to bring a shard into the cache, if there is one. False when enough are on their way."""
        if self.cache is None or self.quarantine.find(self.shards.sha256(shard), WHOLE_SHARD)[0]:
            return True
        return self.cache.ahead(*self._cached(shard))

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._files.clear()
        if self.cache is not None:
            self.cache.close()

    def _forget(self) -> None:
        """Bundles that were sound here may have come into quarantine."""
        with self._lock:
            self._version = self.quarantine.version
            self._bundles.clear()
            self._num_cached_starts = 0

    def _load_index(self, shard: int) -> ShardIndex:
        self._refuse(shard, WHOLE_SHARD)
        try:
            index = ShardIndex.load(self.storage, self.shards[shard], self.dtype)
        except DamagedShard as error:
            self.quarantine.add(error.damage)
            raise
        except OSError as error:
            raise self._damaged(shard, WHOLE_SHARD, None, f"index cannot be read ({error})", error) from error
        with self._lock:
            self._indexes[shard] = index  # two threads may both load it; the result is the same
            self._num_cached_bundles = sum(len(i.bundles) for i in self._indexes.values())
            while self._num_cached_bundles > MAX_CACHED_BUNDLES and len(self._indexes) > 1:
                self._num_cached_bundles -= len(self._indexes.pop(next(iter(self._indexes))).bundles)
        return index

    def _load_bundle(self, shard: int, number: int, whole: bool) -> VerifiedBundle:
        """Where documents begin in a bundle. Checks the bundle if it is new."""
        with self._verifying[shard % len(self._verifying)]:
            if (sound := self._bundles.get((shard, number))) is not None:
                return sound
            self._refuse(shard, number)
            index = self._indexes.get(shard) or self._load_index(shard)
            bundle = index.bundles[number]
            for attempt in range(ATTEMPTS):
                file = self._file(shard, whole)
                try:
                    check = (shard, number) not in self._verified
                    sound = read_bundle(file, bundle, index.token_ends[number], self.dtype, check=check)
                    break
                except FileNotFoundError as error:  # remote files are looked for when they are read
                    raise self._damaged(shard, WHOLE_SHARD, None, "shard is missing", error) from None
                except (OSError, ChecksumMismatch) as error:
                    problem = error
                    self._drop(shard, file)
                    self._verified.discard((shard, number))
                if attempt + 1 == ATTEMPTS:
                    offset = problem.offset if isinstance(problem, ChecksumMismatch) else bundle.tokens_offset
                    raise self._damaged(shard, number, offset, str(problem), problem) from None
            with self._lock:
                self._verified.add((shard, number))
                self._bundles[shard, number] = sound
                self._num_cached_starts += len(sound.starts)
                while self._num_cached_starts > MAX_CACHED_STARTS and len(self._bundles) > 1:
                    self._num_cached_starts -= len(self._bundles.pop(next(iter(self._bundles))).starts)
            return sound

    def _reload_bundle(self, shard: int, number: int, whole: bool) -> OpenFile | RemoteFile:
        """A file to read a bundle from that could be read before, and now cannot."""
        with self._lock:
            self._verified.discard((shard, number))
            if (sound := self._bundles.pop((shard, number), None)) is not None:
                self._num_cached_starts -= len(sound.starts)
        self._load_bundle(shard, number, whole)
        return self._file(shard, whole)

    def _file(self, shard: int, whole: bool = True) -> OpenFile | RemoteFile:
        """The shard to read from; for `whole` see `read_into`. Raises DamagedShard when it is not there."""
        name = self.shards[shard].name
        try:
            if self.cache is not None:
                sha256, size, download = self._cached(shard)
                if (cached := self.cache.open(sha256, size, download if whole else None)) is not None:
                    return cached  # the cache keeps it open, or closes it when it needs room
            file = self.storage.open(name)
        except OSError as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error})"
            raise self._damaged(shard, WHOLE_SHARD, None, f"shard {what}", error) from None
        if self.cache is None:
            with self._lock:
                self._files[shard] = file
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.pop(next(iter(self._files)))
        return file

    def _cached(self, shard: int) -> tuple:
        line = self.shards[shard]
        return line.sha256, line.bytes, partial(self.storage.download, line.name, line.bytes)

    def _drop(self, shard: int, file: OpenFile | RemoteFile) -> None:
        """What is wrong in a file may be right when it is fetched, or opened, anew."""
        with self._lock:
            self._files.pop(shard, None)
        if self.cache is not None and isinstance(file, OpenFile):
            self.cache.discard(self.shards[shard].sha256, file)

    def _refuse(self, shard: int, bundle: int) -> None:
        """Raises DamagedShard for what is in quarantine."""
        line = self.shards[shard]
        found, damage = self.quarantine.find(line.sha256, bundle)
        if found:
            damage = damage or Damage(self.folder, line.name, line.sha256, bundle, None, "in quarantine since before")
            raise DamagedShard(f"{self.storage.locate(line.name)}: {damage.reason}: copy the file again", damage)

    def _damaged(self, shard: int, bundle: int, offset: int | None, reason: str, cause: Exception) -> Exception:
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_RESOURCES:
            return cause
        line = self.shards[shard]
        damage = Damage(self.folder, line.name, line.sha256, bundle, offset, reason)
        self.quarantine.add(damage)
        return DamagedShard(f"{self.storage.locate(line.name)}: {reason}: copy the file again", damage)
