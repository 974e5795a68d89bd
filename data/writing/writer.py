"""Writes a corpus folder, in the format of data/corpus/shards.py. The same documents give the same bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard, cast

import numpy as np

from ingot.data.corpus.manifest import CORPUS_FORMAT, INDEX_FORMAT, MANIFEST, VERSION, Bundle, Shard, token_dtype
from ingot.data.sources.documents import names_of
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.durable_files import flush_to_disk, sync_folder, write_atomically


def add_special_tokens(ids: Sequence[int], bos_id: int | None, eos_id: int | None) -> list[int]:
    """The tokens of a document: [bos] ids [eos].

    If the two are the same token, or only one exists, it is added once, at the front. Then the start of the next
    document also marks the end of this one."""
    if bos_id is None or eos_id is None or bos_id == eos_id:
        token = bos_id if bos_id is not None else eos_id
        return [*([] if token is None else [token]), *ids]
    return [bos_id, *ids, eos_id]


def sibling_path(output: Path, ending: str) -> Path:
    """`output` with `ending` after its name."""
    return output.absolute().with_name(output.name + ending)


def check_output(output: Path, overwrite: bool = False) -> None:
    """Raises ValueError if `output` exists and is not an empty folder. With `overwrite` it may be a corpus."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not (output / MANIFEST).is_file():
            raise ValueError(f"{output} exists and is not a corpus: remove it or choose another --output")
        if not overwrite:
            raise ValueError(
                f"{output} has a corpus that was made from other input or settings, or that is damaged: give "
                f"--overwrite to replace it, or choose another --output"
            )


@contextlib.contextmanager
def locked_for_writing(folder: Path, output: Path) -> Iterator[None]:
    """Make `folder` and lock it while the block runs. The lock ends with the process, also if it is killed."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {output}: wait for it, or choose another --output") from None
        yield
    finally:
        os.close(lock)


def publish_corpus(finished: Path, output: Path) -> None:
    """Rename `finished` to `output`. A corpus in `output` stays there until then."""
    sync_folder(finished)
    replaced = sibling_path(output, ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        output.rename(replaced)
    finished.rename(output)
    sync_folder(output.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def is_disk_full(error: BaseException) -> TypeGuard[OSError]:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_corpus_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into. It is renamed to `output` if the block ends without an error, and else removed.

    Files of a run that was killed are removed first. Raises ValueError as `check_output` does, and if another run is
    writing the same output.
    """
    output = output.absolute()
    partial = sibling_path(output, ".partial")
    check_output(output, overwrite)
    with locked_for_writing(partial, output):
        try:
            for left in partial.iterdir():
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield partial
            publish_corpus(partial, output)
        except BaseException as error:
            shutil.rmtree(partial, ignore_errors=True)
            if is_disk_full(error):
                raise OSError(
                    error.errno,
                    f"no space to write {output} ({error.strerror}): free some space or choose another "
                    f"--output; the files written so far are removed",
                ) from error
            raise


@dataclass
class BundleBuffer:
    """Collects documents for one bundle: tokens with special tokens, (file, row) of each, UTF-8 bytes of their text."""

    documents: list[np.ndarray] = field(default_factory=list)
    origins: list[tuple[str, int]] = field(default_factory=list)
    num_tokens: int = 0
    text_bytes: int = 0

    def add(self, origin: tuple[str, int], tokens: np.ndarray, text_bytes: int) -> None:
        self.documents.append(tokens)
        self.origins.append(origin)
        self.num_tokens += len(tokens)
        self.text_bytes += text_bytes

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all documents, one after another, and the number of tokens of each document (uint32)."""
        return np.concatenate(self.documents), np.array([len(d) for d in self.documents], dtype="<u4")


class CorpusWriter:
    """Writes documents of any split, one by one or in whole bundles, and then the manifest.

    A tar is closed before it exceeds `shard_bytes`. A bundle is closed as soon as it has `bundle_tokens`.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, shard_bytes: int, bundle_tokens: int):
        if bundle_tokens < 1 or shard_bytes < 1:
            raise ValueError(f"bundle_tokens ({bundle_tokens}) and shard_bytes ({shard_bytes}) must be positive")
        self.folder, self.tokenizer = folder, tokenizer
        self.shard_bytes, self.bundle_tokens = shard_bytes, bundle_tokens
        self._splits: dict[str, SplitWriter] = {}

    def add(self, split: str, name: str, ids: Sequence[int], text_bytes: int) -> None:
        """Append one document of `text_bytes` UTF-8 bytes. `ids` has no special tokens; they are added here."""
        tokenizer = self.tokenizer
        tokens = np.array(
            add_special_tokens(ids, tokenizer.bos_id, tokenizer.eos_id), dtype=token_dtype(tokenizer.vocab_size)
        )
        self.split(split).add(name, tokens, text_bytes)

    def split(self, name: str) -> SplitWriter:
        if name not in self._splits:
            self._splits[name] = SplitWriter(self, name, self.tokenizer.vocab_size)
        return self._splits[name]

    @property
    def num_documents(self) -> int:
        return sum(split.num_documents for split in self._splits.values())

    def finish(self, **metadata: Any) -> dict:
        """Write and return the manifest; `metadata` (JSON values) becomes part of it."""
        splits = {name: writer.finish() for name, writer in sorted(self._splits.items())}
        return write_manifest(self.folder, self.tokenizer, splits, **metadata)


def write_manifest(folder: Path, tokenizer: Tokenizer, splits: dict[str, dict], **metadata: Any) -> dict:
    """Write and return the manifest of `splits`, whose shards are in `folder`; `metadata` becomes part of it."""
    manifest = {
        "format": CORPUS_FORMAT,
        "version": VERSION,
        **metadata,
        "tokenizer": {
            "sha256": tokenizer.files_sha256,
            "encoding_sha256": tokenizer.encoding_sha256,
            "vocab_size": tokenizer.vocab_size,
            "bos_id": tokenizer.bos_id,
            "eos_id": tokenizer.eos_id,
            "pad_id": tokenizer.pad_id,
            "mask_id": tokenizer.mask_id,
            "special_ids": sorted(tokenizer.special_ids),
        },
        "dtype": token_dtype(tokenizer.vocab_size).name,
        "num_tokens": sum(s["num_tokens"] for s in splits.values()),
        "num_documents": sum(s["num_documents"] for s in splits.values()),
        "splits": splits,
    }
    write_json(folder / MANIFEST, manifest)
    return manifest


def split_summary(shards: Sequence[Shard], counts: np.ndarray, text_bytes: int) -> dict:
    """A split's part of the manifest. `counts` is the frequency of each token id; `text_bytes` 0 means unknown."""
    total = int(counts.sum())
    frequency = counts[counts > 0] / total
    return {
        "num_tokens": total,
        "num_documents": sum(shard.documents for shard in shards),
        "text_bytes": text_bytes,
        "unigram_entropy": float(-(frequency * np.log(frequency)).sum()),
        "shards": [asdict(shard) for shard in shards],
    }


class SplitWriter:
    """The shards of one split: collects documents into bundles, and bundles into tars."""

    def __init__(self, corpus: CorpusWriter, split: str, vocab_size: int):
        self.corpus, self.split = corpus, split
        self.dtype = token_dtype(vocab_size)
        self.counts = np.zeros(vocab_size, dtype=np.int64)
        self.text_bytes = self.num_documents = self.num_bundles = 0
        self.shards: list[Shard] = []
        self._buffer = BundleBuffer()
        self._tar: _ShardWriter | None = None

    def add(self, name: str, tokens: np.ndarray, text_bytes: int) -> None:
        self._buffer.add((name, 0), tokens, text_bytes)
        if self._buffer.num_tokens >= self.corpus.bundle_tokens:
            self._write_buffer()

    def finish(self) -> dict:
        """Close the last shard. Returns the split's part of the manifest."""
        if self._buffer.documents:
            self._write_buffer()
        self._close_shard()
        return split_summary(self.shards, self.counts, self.text_bytes)

    def _write_buffer(self) -> None:
        buffer, self._buffer = self._buffer, BundleBuffer()
        self.add_bundle(*buffer.arrays(), names_of(buffer.origins), buffer.text_bytes)

    def add_bundle(self, tokens: np.ndarray, doclens: np.ndarray, names: list[str], text_bytes: int) -> None:
        """Append a whole bundle of documents with special tokens; `names` say where they come from."""
        self.counts += np.bincount(tokens, minlength=len(self.counts))
        metadata = {"first_document": self.num_documents, "num_tokens": len(tokens), "documents": names}
        size = tokens.nbytes + doclens.nbytes
        if self._tar is not None and self._tar.size + size > self.corpus.shard_bytes:
            self._close_shard()
        if self._tar is None:
            self._tar = _ShardWriter(self.corpus.folder, f"{self.split}-{len(self.shards):06d}")
        self._tar.add(f"{self.split}-{self.num_bundles:08d}", tokens, doclens, metadata)
        self.num_bundles += 1
        self.num_documents += len(doclens)
        self.text_bytes += text_bytes

    def _close_shard(self) -> None:
        if self._tar is not None:
            tar, self._tar = self._tar, None
            self.shards.append(tar.close(self.dtype))


class _ShardWriter:
    """One tar and its index: plain USTAR with fixed times and owners, which every webdataset reader can read."""

    def __init__(self, folder: Path, stem: str):
        self.folder, self.stem = folder, stem
        self._file = open(folder / f"{stem}.tar", "wb")  # noqa: SIM115  (closed in close)
        self._hash = hashlib.sha256()
        # tarfile only calls write and tell of a file that it writes.
        self._tar = tarfile.open(fileobj=cast("BinaryIO", self), mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._bundles: list[Bundle] = []

    @property
    def size(self) -> int:
        return self._tar.offset  # not documented; where tarfile writes the next header

    def write(self, data: bytes) -> int:  # tarfile writes through here
        self._hash.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def add(self, key: str, tokens: np.ndarray, doclens: np.ndarray, metadata: dict) -> None:
        doclens_offset = self._add_array(f"{key}.doclens.npy", doclens)
        self._add_bytes(f"{key}.json", json.dumps(metadata).encode())
        tokens_offset = self._add_array(f"{key}.tokens.npy", tokens)
        self._bundles.append(
            Bundle(
                key=key,
                tokens_offset=tokens_offset,
                num_tokens=len(tokens),
                tokens_crc32=zlib.crc32(tokens.data),
                doclens_offset=doclens_offset,
                num_documents=len(doclens),
                doclens_crc32=zlib.crc32(doclens.data),
            )
        )

    def _add_array(self, name: str, array: np.ndarray) -> int:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return self._add_bytes(name, buffer.getvalue()) + len(buffer.getvalue()) - array.nbytes

    def _add_bytes(self, name: str, content: bytes) -> int:
        """Append a member. Returns the offset of the first byte of its content."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        offset = self._tar.offset + tarfile.BLOCKSIZE  # a header is one block, because names are short
        self._tar.addfile(member, io.BytesIO(content))
        return offset

    def close(self, dtype: np.dtype) -> Shard:
        self._tar.close()
        flush_to_disk(self._file)
        size = self._file.tell()
        self._file.close()
        return write_index(self.folder, self.stem, dtype, self._bundles, size, self._hash.hexdigest())


def write_index(folder: Path, stem: str, dtype: np.dtype, bundles: list[Bundle], size: int, sha256: str) -> Shard:
    """Write the index of `stem`.tar, which has `size` bytes. Returns the tar's entry of the manifest."""
    tokens, documents = sum(b.num_tokens for b in bundles), sum(b.num_documents for b in bundles)
    index = {
        "format": INDEX_FORMAT,
        "version": VERSION,
        "tar": f"{stem}.tar",
        "dtype": dtype.name,
        "tokens": tokens,
        "documents": documents,
        "bytes": size,
        "sha256": sha256,
        "bundles": [asdict(bundle) for bundle in bundles],
    }
    index_sha256 = write_json(folder / f"{stem}.json", index)
    return Shard(
        name=f"{stem}.tar",
        bytes=size,
        sha256=sha256,
        tokens=tokens,
        documents=documents,
        index=f"{stem}.json",
        index_sha256=index_sha256,
    )


def write_json(path: Path, value: dict) -> str:
    """Write atomically: a reader sees the complete file or none. Returns the content's sha256 in hex."""
    content = (json.dumps(value, indent=1) + "\n").encode()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()
