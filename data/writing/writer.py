"""Writes the corpus folder that data/corpus/shards.py describes; the same documents give the same bytes."""

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

import numpy as np

from ingot.data.corpus.manifest import CORPUS_FORMAT, INDEX_FORMAT, MANIFEST, VERSION, Bundle, Shard, token_dtype
from ingot.data.sources.documents import names_of
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.durable_files import flush_to_disk, sync_folder, write_atomically


def add_special_tokens(ids: Sequence[int], bos_id: int | None, eos_id: int | None) -> list[int]:
    """A document's tokens: [bos] ids [eos]. Where the two are one token, or only one exists, it stands once, in front;
    the start of the next document then serves as the end."""
    if bos_id is None or eos_id is None or bos_id == eos_id:
        mark = bos_id if bos_id is not None else eos_id
        return [*([] if mark is None else [mark]), *ids]
    return [bos_id, *ids, eos_id]


def beside(output: Path, ending: str) -> Path:
    """`output` with `ending` after its name: where it is made before it is put in place."""
    return output.absolute().with_name(output.name + ending)


def check_output(output: Path, overwrite: bool = False) -> None:
    """Raises ValueError when `output` is there: a corpus without `overwrite`, anything else always."""
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        if not (output / MANIFEST).is_file():
            raise ValueError(f"{output} exists and is not a corpus: remove it or choose another --output")
        if not overwrite:
            raise ValueError(
                f"{output} holds a corpus made from other input or settings, or a damaged one: give --overwrite "
                f"to replace it, or choose another --output"
            )


@contextlib.contextmanager
def locked_for_writing(folder: Path, output: Path) -> Iterator[None]:
    """Makes `folder` and locks it while the block runs; the lock ends with the process, however that ends."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another run is writing {output} at this moment") from None
        yield
    finally:
        os.close(lock)


def publish_corpus(finished: Path, output: Path) -> None:
    """Rename `finished` to `output`; a corpus that was there is there until then."""
    sync_folder(finished)
    replaced = beside(output, ".replaced")
    shutil.rmtree(replaced, ignore_errors=True)
    if output.exists():
        output.rename(replaced)
    finished.rename(output)
    sync_folder(output.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def atomic_corpus_folder(output: Path, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into, beside `output`; it becomes `output` when the block ends well and is removed otherwise.

    Raises ValueError as `check_output` does. Files of a run that was killed are cleared away; two runs at once for one
    output are refused.
    """
    output = output.absolute()
    partial = beside(output, ".partial")
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
                    f"no room to write {output} ({os.strerror(error.errno)}): free some space or choose another "
                    f"--output; what was written so far is removed",
                ) from error
            raise


@dataclass
class BundleBuffer:
    """Documents on their way into one bundle: framed tokens, (source, row) of each, UTF-8 bytes of their text."""

    documents: list[np.ndarray] = field(default_factory=list)
    places: list[tuple[str, int]] = field(default_factory=list)
    num_tokens: int = 0
    text_bytes: int = 0

    def add(self, place: tuple[str, int], tokens: np.ndarray, text_bytes: int) -> None:
        self.documents.append(tokens)
        self.places.append(place)
        self.num_tokens += len(tokens)
        self.text_bytes += text_bytes

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Tokens end to end, and tokens of each document (uint32)."""
        return np.concatenate(self.documents), np.array([len(d) for d in self.documents], dtype="<u4")


class CorpusWriter:
    """Takes documents of any split, one by one or in whole bundles, and ends with the manifest.

    A tar is closed before it would exceed `shard_bytes`, a bundle as soon as it has `bundle_tokens`.
    """

    def __init__(self, folder: Path, tokenizer: Tokenizer, *, shard_bytes: int, bundle_tokens: int):
        if bundle_tokens < 1 or shard_bytes < 1:
            raise ValueError(f"bundle_tokens ({bundle_tokens}) and shard_bytes ({shard_bytes}) must be positive")
        self.folder, self.tokenizer = folder, tokenizer
        self.shard_bytes, self.bundle_tokens = shard_bytes, bundle_tokens
        self._splits: dict[str, SplitWriter] = {}

    def add(self, split: str, name: str, ids: Sequence[int], text_bytes: int) -> None:
        """Append one document of `text_bytes` UTF-8 bytes, its ids without special tokens."""
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

    def finish(self, **about) -> dict:
        """Write and return the manifest; `about` (JSON values) is recorded in it."""
        splits = {name: writer.finish() for name, writer in sorted(self._splits.items())}
        return write_manifest(self.folder, self.tokenizer, splits, **about)


def write_manifest(folder: Path, tokenizer: Tokenizer, splits: dict[str, dict], **about) -> dict:
    """Write and return the manifest of `splits`, whose shards lie in `folder`; `about` is recorded in it."""
    manifest = {
        "format": CORPUS_FORMAT,
        "version": VERSION,
        **about,
        "tokenizer": {
            "sha256": tokenizer.sha256,
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
    """A split's part of the manifest; `counts` of each token id, bytes of UTF-8 text (0: unknown)."""
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
    """The shards of one split: gathers documents into bundles, bundles into tars."""

    def __init__(self, corpus: CorpusWriter, split: str, vocab_size: int):
        self.corpus, self.split = corpus, split
        self.dtype = token_dtype(vocab_size)
        self.counts = np.zeros(vocab_size, dtype=np.int64)
        self.text_bytes = self.num_documents = self.num_bundles = 0
        self.shards: list[Shard] = []
        self._gathered = BundleBuffer()
        self._tar: _ShardWriter | None = None

    def add(self, name: str, tokens: np.ndarray, text_bytes: int) -> None:
        self._gathered.add((name, 0), tokens, text_bytes)
        if self._gathered.num_tokens >= self.corpus.bundle_tokens:
            self._write_gathered()

    def finish(self) -> dict:
        """Close the last shard; the split's part of the manifest."""
        if self._gathered.documents:
            self._write_gathered()
        self._close_shard()
        return split_summary(self.shards, self.counts, self.text_bytes)

    def _write_gathered(self) -> None:
        gathered, self._gathered = self._gathered, BundleBuffer()
        self.add_bundle(*gathered.arrays(), names_of(gathered.places), gathered.text_bytes)

    def add_bundle(self, tokens: np.ndarray, doclens: np.ndarray, names: list[str], text_bytes: int) -> None:
        """Append a whole bundle of framed documents; `names` of where they come from."""
        self.counts += np.bincount(tokens, minlength=len(self.counts))
        about = {"first_document": self.num_documents, "num_tokens": len(tokens), "documents": names}
        size = tokens.nbytes + doclens.nbytes
        if self._tar is not None and self._tar.size + size > self.corpus.shard_bytes:
            self._close_shard()
        if self._tar is None:
            self._tar = _ShardWriter(self.corpus.folder, f"{self.split}-{len(self.shards):06d}")
        self._tar.add(f"{self.split}-{self.num_bundles:08d}", tokens, doclens, about)
        self.num_bundles += 1
        self.num_documents += len(doclens)
        self.text_bytes += text_bytes

    def _close_shard(self) -> None:
        if self._tar is not None:
            tar, self._tar = self._tar, None
            self.shards.append(tar.close(self.dtype))


class _ShardWriter:
    """One tar and its index. Plain USTAR with fixed times and owners, as every webdataset reader takes it."""

    def __init__(self, folder: Path, stem: str):
        self.folder, self.stem = folder, stem
        self._file = open(folder / f"{stem}.tar", "wb")  # noqa: SIM115  (closed in close)
        self._hash = hashlib.sha256()
        self._tar = tarfile.open(fileobj=self, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        self._bundles: list[Bundle] = []

    @property
    def size(self) -> int:
        return self._tar.offset

    def write(self, data: bytes) -> int:  # tarfile writes through here
        self._hash.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def add(self, key: str, tokens: np.ndarray, doclens: np.ndarray, about: dict) -> None:
        doclens_offset = self._add_array(f"{key}.doclens.npy", doclens)
        self._add_bytes(f"{key}.json", json.dumps(about).encode())
        tokens_offset = self._add_array(f"{key}.tokens.npy", tokens)
        self._bundles.append(
            Bundle(
                key=key,
                tokens_offset=tokens_offset,
                num_tokens=len(tokens),
                tokens_crc32=zlib.crc32(tokens),
                doclens_offset=doclens_offset,
                num_documents=len(doclens),
                doclens_crc32=zlib.crc32(doclens),
            )
        )

    def _add_array(self, name: str, array: np.ndarray) -> int:
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        return self._add_bytes(name, buffer.getvalue()) + len(buffer.getvalue()) - array.nbytes

    def _add_bytes(self, name: str, content: bytes) -> int:
        """Append a member; the offset of its first byte of content."""
        member = tarfile.TarInfo(name)
        member.size = len(content)
        offset = self._tar.offset + tarfile.BLOCKSIZE  # names are short, so a header is one block
        self._tar.addfile(member, io.BytesIO(content))
        return offset

    def close(self, dtype: np.dtype) -> Shard:
        self._tar.close()
        flush_to_disk(self._file)
        size = self._file.tell()
        self._file.close()
        return write_index(self.folder, self.stem, dtype, self._bundles, size, self._hash.hexdigest())


def write_index(folder: Path, stem: str, dtype: np.dtype, bundles: list[Bundle], size: int, sha256: str) -> Shard:
    """Write the index of `stem`.tar (of `size` bytes); its line of the manifest."""
    shard = {
        "tokens": sum(b.num_tokens for b in bundles),
        "documents": sum(b.num_documents for b in bundles),
        "bytes": size,
        "sha256": sha256,
    }
    index = {
        "format": INDEX_FORMAT,
        "version": VERSION,
        "tar": f"{stem}.tar",
        "dtype": dtype.name,
        **shard,
        "bundles": [asdict(bundle) for bundle in bundles],
    }
    index_sha256 = write_json(folder / f"{stem}.json", index)
    return Shard(name=f"{stem}.tar", index=f"{stem}.json", index_sha256=index_sha256, **shard)


def write_json(path: Path, value: dict) -> str:
    """Write atomically: the file is there whole or not at all. Returns the content's sha256 in hex."""
    content = (json.dumps(value, indent=1) + "\n").encode()
    write_atomically(path, content)
    return hashlib.sha256(content).hexdigest()
