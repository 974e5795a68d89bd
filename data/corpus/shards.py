"""The corpus folder, as it is read.

    manifest.json           sizes, checksums and token counts of all shards, the tokenizer's hash; written last
    tokenizer/              the tokenizer's own files
    train-000000.tar        plain tar of token bundles: KEY.tokens.npy, KEY.doclens.npy, KEY.json
    train-000000.json       its index: where the data of each bundle is, and its checksums
    validation-000000.tar   the same for the other split

A bundle holds whole documents, about a million tokens, one after another: `tokens` (uint16, or uint32 above 65,536 ids)
and `doclens` (uint32, tokens of each document). The bundles of a shard, one after another, are its token stream.

The tar is never parsed: bytes are read at the offsets of the index, and used if they match its checksums. A bundle is
verified when it is read for the first time, and again if somebody has written to its file since then.
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

from ingot.data.corpus.bundles import ChecksumMismatch, UnknownToken, VerifiedBundle, read_bundle
from ingot.data.corpus.cache import Cache, Download
from ingot.data.corpus.manifest import (
    MANIFEST,
    ShardIndex,
    read_manifest,
    read_split,
    token_dtype,
)
from ingot.data.corpus.quarantine import WHOLE_SHARD, Damage, DamagedShard, Quarantine
from ingot.data.corpus.storage import FileChanged, LocalFolder, OpenFile, RemoteFile, RemoteFolder, open_storage
from ingot.data.tokenizers.tokenizer import TOKENIZER_FILES

MAX_OPEN_FILES = 256  # per process; far below the usual limit of 1,024
MAX_CACHED_STARTS = 4_000_000  # document starts kept in memory, 8 bytes each
MAX_CACHED_BUNDLES = 500_000  # index entries kept in memory, about 300 bytes each
# Version of the rule which tokens an instance has (data/sequences); each run records it. Version 1 dropped the tail of
# each shard.
PACKING_VERSION = 2
ATTEMPTS = 2  # at a bundle: the second one fetches it again
MAX_TOKENIZER_BYTES = 2**28  # of one of its files

COPY_AGAIN, PREPARE_AGAIN = "copy the file again", "prepare the corpus again"

_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # a problem of this process, not damage


class Corpus:
    """One split of a corpus folder, with random access for any number of threads at once.

    Remote shards are read through `cache`, or in ranges if there is no cache. Bundles in `quarantine` are not read.
    Damage that is found is added to it.
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
        content = read_split(manifest, split, storage.full_path(MANIFEST))
        self.shards = content.shards
        self.tokenizer_sha256: str = manifest["tokenizer"]["sha256"]  # of its files
        self.encoding_sha256: str | None = manifest["tokenizer"].get("encoding_sha256")  # None in an older corpus
        self.vocab_size: int = manifest["tokenizer"]["vocab_size"]
        self.dtype = token_dtype(self.vocab_size)
        self._width = self.dtype.itemsize
        self.num_tokens, self.num_documents = content.num_tokens, content.num_documents
        self.text_bytes = content.text_bytes  # UTF-8 bytes of the text, for the metric bits per byte
        self.unigram_entropy = content.unigram_entropy  # nats per token, from this split's own token frequencies
        self.cache = cache if isinstance(storage, RemoteFolder) else None
        self.quarantine = quarantine if quarantine is not None else Quarantine()
        self._version = self.quarantine.version
        self._lock = threading.Lock()
        self._verifying = [threading.Lock() for _ in range(64)]  # by shard: a bundle is verified by one thread
        # Plain dicts that are read without the lock. The oldest entries are removed, under the lock.
        self._indexes: dict[int, ShardIndex] = {}
        self._files: dict[int, OpenFile | RemoteFile] = {}
        self._bundles: dict[tuple[int, int], VerifiedBundle] = {}
        self._verified: dict[tuple[int, int], object] = {}  # and the state of the file in which they were verified
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
        """The corpus at a path or URL. With `check`, a local corpus must have all its shards, with the right lengths.

        Raises ValueError if it is not a finished corpus, lacks `split` or (`check`) a shard, or is not valid.
        """
        storage = open_storage(folder)
        manifest = read_manifest(storage)
        if split not in manifest["splits"]:
            names = ", ".join(name if name.isprintable() else repr(name) for name in list(manifest["splits"])[:20])
            raise ValueError(f"corpus {folder} has no split {split!r}; it has: {names[:1000]}")
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
                where = self.storage.full_path(name)
                raise DamagedShard(f"{where} has {found} bytes, not the {size} listed: copy it again")

    @cached_property
    def tokenizer_folder(self) -> Path:
        """A local folder. For a remote corpus it is a copy, which is deleted with this object."""
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
        """sha256 of the list of shards and of the packing rule, in hex. It identifies the exact content of every
        sequence, wherever the folder is."""
        return hashlib.sha256(b"packing %d " % PACKING_VERSION + self.shards.digest()).hexdigest()

    def read(self, shard: int, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Tokens [start, stop) of a shard's stream, of `dtype`, and the indices of those that start a document (int64,
        ascending). Raises what `read_into` raises."""
        tokens = np.empty(max(0, stop - start), dtype=self.dtype)
        starts, shift = self.read_into(tokens, shard, start)
        return tokens, starts - shift

    def read_into(self, tokens: np.ndarray, shard: int, start: int, whole: bool = True) -> tuple[np.ndarray, int]:
        """Fill `tokens` (1-D, contiguous, of `dtype`) from token `start` of a shard's stream on.

        Args:
            whole: download a remote shard into the cache for this; if False, read only the range.

        Returns:
            Where documents start (int64, ascending), and the number to subtract from these to get indices of `tokens`.
            (The reader subtracts for all sequences of a batch at once, which is faster.)

        Raises:
            DamagedShard: a bundle is in quarantine, cannot be read, does not match its checksum, or has an id that the
                vocabulary lacks. A damaged bundle is then in quarantine, and the content of `tokens` is undefined.
        """
        if self._version != self.quarantine.version:
            self._clear_bundles()
        index = self._indexes.get(shard) or self._load_index(shard)
        number = bisect_right(index.token_ends, start)
        bundle, file = self._bundles.get((shard, number)), self._files.get(shard)
        if bundle is not None and file is not None and start >= 0 and start + len(tokens) <= bundle.end:
            first = start - bundle.origin
            if bundle.state == file.state and file.try_read_into(tokens, bundle.offset + first * self._width):
                return bundle.between(first, first + len(tokens)), first
        return self._read_parts(tokens, shard, start, index, number, whole)

    def _read_parts(
        self, tokens: np.ndarray, shard: int, start: int, index: ShardIndex, number: int, whole: bool
    ) -> tuple[np.ndarray, int]:
        """`read_into` for bundles that are not loaded yet, for several bundles, and for remote files."""
        stop = start + len(tokens)
        if not 0 <= start <= stop <= index.num_tokens:
            raise IndexError(f"tokens [{start}, {stop}) of {self.shards[shard].name}, which has {index.num_tokens}")
        boundaries = [np.empty(0, dtype=np.int64)]
        begin = start
        while begin < stop:
            bundle = self._bundles.get((shard, number)) or self._load_bundle(shard, number, whole)
            first, last = begin - bundle.origin, min(stop, bundle.end) - bundle.origin
            part = tokens[begin - start : begin - start + last - first]
            offset = bundle.offset + first * self._width
            try:
                self._read_range(shard, bundle, part, offset, whole)
            except OSError:
                self._reload_range(shard, number, part, offset, whole)
            boundaries.append(bundle.between(first, last) - (start - bundle.origin))
            begin += last - first
            number += 1
        return np.concatenate(boundaries), 0

    def _read_range(self, shard: int, bundle: VerifiedBundle, part: np.ndarray, offset: int, whole: bool) -> None:
        """Fill `part` from a verified bundle. Raises FileChanged if the file is not any more what was verified."""
        file = self._files.get(shard) or self._open_file(shard, whole)
        if bundle.state != file.state:
            raise FileChanged("somebody has written to the file since it was verified")
        file.read_into(part, offset)

    def _reload_range(self, shard: int, number: int, part: np.ndarray, offset: int, whole: bool) -> None:
        """Fill `part` from a bundle that could be read before but not now: it is verified again."""
        with self._lock:
            self._verified.pop((shard, number), None)
            if (loaded := self._bundles.pop((shard, number), None)) is not None:
                self._num_cached_starts -= len(loaded.starts)
        bundle = self._load_bundle(shard, number, whole)
        try:
            self._read_range(shard, bundle, part, offset, whole)
        except FileChanged as error:
            raise self._report_damage(shard, number, bundle.offset, str(error), error) from None

    def document_lengths(self, shard: int) -> np.ndarray:
        """Tokens of each document of a shard, int64. A bundle whose lengths cannot be read counts as one document."""
        lengths = []
        for bundle in (self._indexes.get(shard) or self._load_index(shard)).bundles:
            doclens = np.empty(bundle.num_documents, dtype="<u4")
            try:
                self._open_file(shard).read_into(doclens, bundle.doclens_offset)
            except OSError:
                doclens = doclens[:0]
            if zlib.crc32(doclens.data) != bundle.doclens_crc32:
                doclens = np.array([bundle.num_tokens])  # the damage is reported when its tokens are read
            lengths.append(doclens.astype(np.int64))
        return np.concatenate(lengths) if lengths else np.empty(0, dtype=np.int64)

    def prefetch_shard(self, shard: int) -> bool:
        """Start the download of a shard into the cache, if there is a cache. False if enough downloads are running."""
        if self.cache is None or self.quarantine.find(self.shards.sha256(shard), WHOLE_SHARD)[0]:
            return True
        return self.cache.prefetch(*self._cache_entry(shard))

    def close(self) -> None:
        """Close the files; a later read opens them again."""
        with self._lock:
            self._files.clear()
        if self.cache is not None:
            self.cache.close()

    def _clear_bundles(self) -> None:
        """Drop the loaded bundles: some of them may be in quarantine now."""
        with self._lock:
            self._version = self.quarantine.version
            self._bundles.clear()
            self._num_cached_starts = 0

    def _load_index(self, shard: int) -> ShardIndex:
        self._check_quarantine(shard, WHOLE_SHARD)
        try:
            index = ShardIndex.load(self.storage, self.shards[shard], self.dtype)
        except DamagedShard as error:
            if error.damage is not None:
                self.quarantine.add(error.damage)
            raise
        except OSError as error:
            raise self._report_damage(shard, WHOLE_SHARD, None, f"index cannot be read ({error})", error) from error
        with self._lock:
            self._indexes[shard] = index  # two threads may load it at once; the result is the same
            self._num_cached_bundles = sum(len(i.bundles) for i in self._indexes.values())
            while self._num_cached_bundles > MAX_CACHED_BUNDLES and len(self._indexes) > 1:
                self._num_cached_bundles -= len(self._indexes.pop(next(iter(self._indexes))).bundles)
        return index

    def _load_bundle(self, shard: int, number: int, whole: bool) -> VerifiedBundle:
        """Load a bundle that is not in memory. Its checksums are verified the first time."""
        with self._verifying[shard % len(self._verifying)]:
            if (loaded := self._bundles.get((shard, number))) is not None:  # another thread was faster
                return loaded
            self._check_quarantine(shard, number)
            index = self._indexes.get(shard) or self._load_index(shard)
            loaded = self._read_verified(shard, number, index, whole)
            with self._lock:
                self._verified[shard, number] = loaded.state
                self._bundles[shard, number] = loaded
                self._num_cached_starts += len(loaded.starts)
                while self._num_cached_starts > MAX_CACHED_STARTS and len(self._bundles) > 1:
                    self._num_cached_starts -= len(self._bundles.pop(next(iter(self._bundles))).starts)
            return loaded

    def _read_verified(self, shard: int, number: int, index: ShardIndex, whole: bool) -> VerifiedBundle:
        """Read a bundle, at a second attempt from a file that is fetched or opened again."""
        bundle, name = index.bundles[number], (shard, number)
        problem: OSError | ChecksumMismatch | None = None
        for _ in range(ATTEMPTS):
            file = self._open_file(shard, whole)
            try:
                check = name not in self._verified or self._verified[name] != file.state
                end = index.token_ends[number]
                return read_bundle(file, bundle, end, self.dtype, self.vocab_size, check=check)
            except FileNotFoundError as error:  # remote files are only looked for when they are read
                raise self._report_damage(shard, WHOLE_SHARD, None, "shard is missing", error) from None
            except UnknownToken as error:
                raise self._report_damage(shard, number, error.offset, str(error), error, PREPARE_AGAIN) from None
            except (OSError, ChecksumMismatch) as error:
                problem = error
                self._drop_file(shard, file)
                self._verified.pop(name, None)
        assert problem is not None
        offset = problem.offset if isinstance(problem, ChecksumMismatch) else bundle.tokens_offset
        raise self._report_damage(shard, number, offset, str(problem), problem) from None

    def _open_file(self, shard: int, whole: bool = True) -> OpenFile | RemoteFile:
        """Open a shard; for `whole` see `read_into`. Raises DamagedShard if it does not exist or cannot be opened."""
        name = self.shards[shard].name
        try:
            if self.cache is not None:
                sha256, size, download = self._cache_entry(shard)
                if (cached := self.cache.open(sha256, size, download if whole else None)) is not None:
                    return cached  # the cache keeps it open, or closes it to evict it
            file = self.storage.open(name)
        except (OSError, ValueError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be opened ({error})"
            raise self._report_damage(shard, WHOLE_SHARD, None, f"shard {what}", error) from None
        if self.cache is None:
            with self._lock:
                self._files[shard] = file
                if len(self._files) > MAX_OPEN_FILES:
                    self._files.pop(next(iter(self._files)))
        return file

    def _cache_entry(self, shard: int) -> tuple[str, int, Download]:
        """(sha256, bytes, function that downloads it) of a shard, as the cache takes them."""
        assert isinstance(self.storage, RemoteFolder)
        entry = self.shards[shard]
        return entry.sha256, entry.bytes, partial(self.storage.download, entry.name, entry.bytes)

    def _drop_file(self, shard: int, file: OpenFile | RemoteFile) -> None:
        """Close a shard's file, and remove its copy from the cache: the next attempt opens or downloads it again."""
        with self._lock:
            self._files.pop(shard, None)
        if self.cache is not None and isinstance(file, OpenFile):
            self.cache.discard(self.shards[shard].sha256, file)

    def _check_quarantine(self, shard: int, bundle: int) -> None:
        """Raises DamagedShard for a bundle or shard that is in quarantine."""
        entry = self.shards[shard]
        found, damage = self.quarantine.find(entry.sha256, bundle)
        if found:
            reason = "it was found damaged before"
            damage = damage or Damage(self.folder, entry.name, entry.sha256, bundle, None, reason)
            raise DamagedShard(f"{self.storage.full_path(entry.name)}: {damage.reason}: copy the file again", damage)

    def _report_damage(
        self, shard: int, bundle: int, offset: int | None, reason: str, cause: Exception, remedy: str = COPY_AGAIN
    ) -> Exception:
        """The error to raise for damage, which is put in quarantine. A lack of resources is raised as it is."""
        if isinstance(cause, OSError) and cause.errno in _OUT_OF_RESOURCES:
            return cause
        entry = self.shards[shard]
        damage = Damage(self.folder, entry.name, entry.sha256, bundle, offset, reason)
        self.quarantine.add(damage)
        return DamagedShard(f"{self.storage.full_path(entry.name)}: {reason}: {remedy}", damage)
