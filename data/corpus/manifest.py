"""Manifest and index of a corpus folder: read as plain data, and checked before use.

Both are JSON and may come from anybody. Each name, number and offset is checked before it is used: nothing outside the
folder is opened, and nothing outside a file is read.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ingot.data.corpus.quarantine import WHOLE_SHARD, Damage, DamagedShard
from ingot.data.corpus.shard_list import Shard, ShardList, check_count, check_hash
from ingot.data.corpus.storage import LocalFolder, RemoteFolder, open_storage
from ingot.data.sources.tars import MAX_MEMBER_BYTES
from ingot.safe_files import parse_json

CORPUS_FORMAT, INDEX_FORMAT, VERSION = "ingot-corpus", "ingot-shard-index", 1
MANIFEST = "manifest.json"

MAX_MANIFEST_BYTES = 2**29  # a million shards need about 400 MB
MAX_INDEX_BYTES = 2**28  # enough for a million bundles, about 10^12 tokens
MAX_DEPTH = 16  # of lists and objects inside one another
MAX_VOCAB_SIZE = 10**8
# A bundle is verified as a whole before its first token is used. It is a member of a tar, of which none is larger.
MAX_BUNDLE_BYTES, MAX_BUNDLE_DOCUMENTS = MAX_MEMBER_BYTES, 2**26
MAX_ENTROPY = 64.0  # nats; no vocabulary reaches it


def token_dtype(vocab_size: int) -> np.dtype:
    """Little-endian uint16 if all ids fit, else uint32."""
    return np.dtype("<u2" if vocab_size <= 65_536 else "<u4")


@dataclass(frozen=True, slots=True)
class Bundle:
    """An entry of an index. Offsets, in bytes, are those of the data in the tar, behind the npy header."""

    key: str
    tokens_offset: int
    num_tokens: int
    tokens_crc32: int
    doclens_offset: int
    num_documents: int
    doclens_crc32: int


@dataclass(frozen=True)
class Split:
    """A split's part of the manifest; `text_bytes` counts UTF-8, `unigram_entropy` is in nats per token."""

    shards: ShardList
    num_tokens: int
    num_documents: int
    text_bytes: int
    unigram_entropy: float


def read_manifest(folder: str | Path | LocalFolder | RemoteFolder) -> dict:
    """The manifest of a finished corpus folder. Raises ValueError, with the remedy, for anything else."""
    storage = open_storage(folder) if isinstance(folder, str | Path) else folder
    if isinstance(storage, LocalFolder) and storage.path.is_file():
        raise ValueError(
            f"{storage} is a file and no corpus: make one with launcher/prepare.py --input {storage} --output FOLDER"
        )
    if isinstance(storage, LocalFolder) and not storage.path.is_dir():
        raise ValueError(f"corpus folder {storage} does not exist: make it with launcher/prepare.py --output {storage}")
    where = storage.full_path(MANIFEST)
    try:
        manifest = parse_json(storage.read(MANIFEST, MAX_MANIFEST_BYTES), where, max_depth=MAX_DEPTH)
    except FileNotFoundError:
        if isinstance(storage, LocalFolder) and not any(storage.path.iterdir()):
            raise ValueError(f"corpus folder {storage} is empty: fill it with launcher/prepare.py") from None
        raise ValueError(
            f"corpus folder {storage} has no {MANIFEST}, so it is unfinished or not a corpus: "
            f"run launcher/prepare.py again"
        ) from None
    except ValueError as error:
        raise ValueError(f"{where} is damaged ({error}): run launcher/prepare.py again") from None
    if not isinstance(manifest, dict) or manifest.get("format") != CORPUS_FORMAT:
        raise ValueError(f"{where} does not describe a corpus (format {CORPUS_FORMAT})")
    if manifest.get("version") != VERSION:
        raise ValueError(
            f"corpus {storage} has format version {str(manifest.get('version'))[:80]}, this program reads version "
            f"{VERSION}: "
            f"make it again with launcher/prepare.py"
        )
    if not isinstance(manifest.get("splits"), dict) or not isinstance(manifest.get("tokenizer"), dict):
        raise ValueError(f"{where} is damaged (no splits, or no tokenizer): run launcher/prepare.py again")
    return manifest


def read_split(manifest: dict, split: str, where: str) -> Split:
    """Raises ValueError, with `where` and the entry, for values that are impossible."""
    try:
        check_hash("sha256", manifest["tokenizer"]["sha256"])
        check_hash("encoding_sha256", manifest["tokenizer"].get("encoding_sha256", "0" * 64))  # older ones lack it
        vocab_size = check_count("vocab_size", manifest["tokenizer"]["vocab_size"], least=1, most=MAX_VOCAB_SIZE)
        width = token_dtype(vocab_size).itemsize
        content = manifest["splits"][split]
        entropy = content["unigram_entropy"]
        if type(entropy) not in (int, float) or not 0 <= entropy <= MAX_ENTROPY:
            raise ValueError(f"unigram_entropy is {str(entropy)[:80]}")
        shards = ShardList(content["shards"], width)
        num_tokens, num_documents, text_bytes = (
            check_count(name, content[name]) for name in ("num_tokens", "num_documents", "text_bytes")
        )
        if sum(shards.tokens.tolist()) != num_tokens:
            raise ValueError(f"num_tokens is {num_tokens}, its shards hold {sum(shards.tokens.tolist())}")
        return Split(shards, num_tokens, num_documents, text_bytes, entropy)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{where}, split {split}, is not valid: {_describe(error)}; copy the corpus or prepare it again"
        ) from None


def _describe(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)


class ShardIndex:
    """The index of one shard in memory."""

    def __init__(self, bundles: list[Bundle]):
        self.bundles = bundles
        self.token_ends = np.cumsum([b.num_tokens for b in bundles], dtype=np.int64).tolist()
        self.num_tokens = self.token_ends[-1] if bundles else 0

    @staticmethod
    def load(storage: LocalFolder | RemoteFolder, shard: Shard, dtype: np.dtype) -> ShardIndex:
        """Raises DamagedShard if the index is missing, is not the one that the manifest lists, or is not valid. Raises
        OSError if it cannot be read."""
        where = storage.full_path(shard.index)

        def damaged(reason: str) -> DamagedShard:
            return DamagedShard(
                f"{where} {reason}: copy the file again",
                Damage(str(storage), shard.name, shard.sha256, WHOLE_SHARD, None, f"index {reason}"),
            )

        try:
            content = storage.read(shard.index, MAX_INDEX_BYTES)
        except FileNotFoundError:
            raise damaged("is missing") from None
        except ValueError as error:
            raise damaged(f"cannot be read ({error})") from None
        if hashlib.sha256(content).hexdigest() != shard.index_sha256:
            raise damaged(f"does not match its checksum in {MANIFEST}")
        try:
            index = parse_json(content, where, max_depth=MAX_DEPTH)
            if not isinstance(index, dict):
                raise ValueError("it is not an object")
            if (index["format"], index["version"], index["dtype"]) != (INDEX_FORMAT, VERSION, dtype.name):
                raise ValueError(f"the format is not {INDEX_FORMAT} version {VERSION} of {dtype.name} tokens")
            bundles = [_bundle(entry, shard, dtype.itemsize) for entry in index["bundles"]]
            if sum(b.num_tokens for b in bundles) != shard.tokens:
                raise ValueError(f"its bundles do not add up to the {shard.tokens} tokens that {MANIFEST} lists")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise damaged(f"is not valid ({_describe(error)})") from None
        return ShardIndex(bundles)


def _bundle(entry: dict, shard: Shard, width: int) -> Bundle:
    bundle = Bundle(
        str(entry["key"])[:200],
        check_count("tokens_offset", entry["tokens_offset"]),
        check_count("num_tokens", entry["num_tokens"]),
        check_count("tokens_crc32", entry["tokens_crc32"]),
        check_count("doclens_offset", entry["doclens_offset"]),
        check_count("num_documents", entry["num_documents"], most=MAX_BUNDLE_DOCUMENTS),
        check_count("doclens_crc32", entry["doclens_crc32"]),
    )
    for part, offset, size in (
        ("tokens", bundle.tokens_offset, bundle.num_tokens * width),
        ("doclens", bundle.doclens_offset, bundle.num_documents * 4),
    ):
        if offset + size > shard.bytes:
            raise ValueError(f"the {part} of bundle {bundle.key} end beyond the {shard.bytes} bytes of {shard.name}")
        if size > MAX_BUNDLE_BYTES:
            raise ValueError(
                f"the {part} of bundle {bundle.key} have {size:,} bytes, and at most {MAX_BUNDLE_BYTES:,} are read: "
                f"make smaller bundles with launcher/prepare.py"
            )
    return bundle
