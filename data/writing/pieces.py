"""Preparation in pieces: groups of file parts that are processed independently, in any order, by any process.

A finished piece of a stage is a file and a marker, which is written after the file and has its size and sha256. Their
content depends only on the file parts and the settings. So a run that was killed continues with the pieces that have no
marker, and the corpus is the same for any number of workers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ingot.data.corpus.manifest import token_dtype
from ingot.data.sources.documents import Document, Skipped, names_of
from ingot.data.sources.file_parts import FilePart, read_documents
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.writing.writer import BundleBuffer, CorpusWriter, add_special_tokens, write_json
from ingot.durable_files import flush_to_disk, sync_folder

PLAN, PLAN_FORMAT, PLAN_VERSION = "plan.json", "ingot-preparation", 1
BATCH_CHARACTERS = 1_000_000  # of text that is encoded at once


@dataclass
class PreparationPlan:
    """Everything that determines the work, as rank 0 writes it for all ranks.

    Attributes:
        asked: hash of the command's options, see launcher/config/prepare.py.
        fingerprint: hash of the options and of the content of the inputs.
        session: a random name of this run.
        finished: the corpus is made already; there is nothing to do.
    """

    asked: str
    fingerprint: str
    session: str
    num_ranks: int
    validation_fraction: float
    bundle_tokens: int
    refuse_bad: bool
    deduplicate: str
    near_threshold: float
    finished: bool = False
    pieces: list[list[FilePart]] = field(default_factory=list)
    skipped: Skipped = field(default_factory=Skipped)

    def save(self, folder: Path) -> None:
        values = asdict(self)
        for parts in values["pieces"]:
            for part in parts:
                part["path"] = str(part["path"])
        write_json(folder / PLAN, {"format": PLAN_FORMAT, "version": PLAN_VERSION, **values})

    @staticmethod
    def load(folder: Path) -> PreparationPlan | None:
        """The plan in `folder`; None if there is none, or one of another version."""
        try:
            values = json.loads((folder / PLAN).read_bytes())
            if (values.pop("format"), values.pop("version")) != (PLAN_FORMAT, PLAN_VERSION):
                return None
            values["skipped"] = Skipped(**values["skipped"])
            part = lambda p: FilePart(**{**p, "path": Path(p["path"]), "where": tuple(p["where"])})  # noqa: E731
            values["pieces"] = [[part(p) for p in parts] for parts in values["pieces"]]
            return PreparationPlan(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def documents(self, number: int, skipped: Skipped) -> Iterator[tuple[str, Document]]:
        """(split, document) of a piece, in order. Duplicates are not removed yet."""
        for part in self.pieces[number]:
            for document in read_documents([part], skipped, refuse_bad=self.refuse_bad):
                yield part.split_of(document, self.validation_fraction), document


def group_into_pieces(parts: Sequence[FilePart], piece_bytes: int) -> list[list[FilePart]]:
    """Groups of consecutive file parts. Each has at least `piece_bytes` bytes, except the last one."""
    pieces: list[list[FilePart]] = []
    size = piece_bytes
    for part in parts:
        if size >= piece_bytes:
            pieces.append([])
            size = 0
        pieces[-1].append(part)
        size += part.size
    return pieces


def piece_paths(folder: Path, stage: str, number: int) -> tuple[Path, Path]:
    """The file and the marker of a piece."""
    return folder / f"{stage}-{number:06d}.bin", folder / f"{stage}-{number:06d}.json"


class PieceWriter:
    """Writes the file of a piece. `finish` completes the piece, `discard` removes it."""

    def __init__(self, folder: Path, stage: str, number: int):
        self.folder = folder
        self.path, self.marker = piece_paths(folder, stage, number)
        self._temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115  (closed in finish and discard)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes | bytearray | memoryview) -> int:
        """Append content. Returns its offset."""
        offset = self.size
        self._hash.update(content)
        self._file.write(content)
        self.size += memoryview(content).nbytes
        return offset

    def finish(self, fingerprint: str, **metadata: Any) -> None:
        """Complete the file, then write the marker; `metadata` (JSON values) becomes part of the marker."""
        flush_to_disk(self._file)
        self._file.close()
        self._temporary.rename(self.path)
        sync_folder(self.folder)
        content = {"fingerprint": fingerprint, "bytes": self.size, "sha256": self._hash.hexdigest()}
        write_json(self.marker, {**content, **metadata})

    def discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_piece(folder: Path, stage: str, number: int) -> Iterator[PieceWriter]:
    """A writer whose file is removed if the block ends with an error."""
    writer = PieceWriter(folder, stage, number)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise


def finished_piece(folder: Path, stage: str, number: int, fingerprint: str, *, whole: bool = False) -> dict | None:
    """The marker of a finished piece of this plan, else None. With `whole` the file is read and its sha256 compared."""
    path, marker = piece_paths(folder, stage, number)
    try:
        marker_content = json.loads(marker.read_bytes())
        if marker_content["fingerprint"] != fingerprint or path.stat().st_size != marker_content["bytes"]:
            return None
        if whole:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != marker_content["sha256"]:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return marker_content


def tokenize_piece(
    plan: PreparationPlan,
    number: int,
    folder: Path,
    tokenizer: Tokenizer,
    *,
    dropped: np.ndarray | None = None,
    threads: int = 1,
    report: Callable[[int, int], None] = lambda num_bytes, num_tokens: None,
) -> None:
    """Tokenize piece `number` into bundles of its own.

    Args:
        dropped: bool, for each document of the piece whether it is removed as a duplicate.
        report: gets the numbers of bytes of text and of tokens.
    """
    dtype = token_dtype(tokenizer.vocab_size)
    skipped = Skipped()
    splits: dict[str, BundleBuffer] = {}
    bundles: list[dict] = []
    bos, eos = tokenizer.bos_id, tokenizer.eos_id
    head = np.array(add_special_tokens([], bos, eos)[:1], dtype=dtype)
    tail = np.array(add_special_tokens([], bos, eos)[1:], dtype=dtype)

    with new_piece(folder, "tokens", number) as writer:

        def close(split: str) -> None:
            buffer = splits.pop(split)
            tokens, doclens = buffer.arrays()
            names = json.dumps(names_of(buffer.origins)).encode()
            bundles.append(
                {
                    "split": split,
                    "offset": writer.write(tokens.data),
                    "num_tokens": len(tokens),
                    "num_documents": len(doclens),
                    "names_bytes": len(names),
                    "text_bytes": buffer.text_bytes,
                    "crc32": zlib.crc32(names, zlib.crc32(doclens.data, zlib.crc32(tokens.data))),
                }
            )
            writer.write(doclens.data)
            writer.write(names)

        documents = plan.documents(number, skipped)
        if dropped is not None:
            documents = _without(documents, dropped)
        for batch in batch_documents(documents):
            encoded = tokenizer.encode_arrays([document.text for _, document in batch], dtype, threads)
            num_bytes = num_tokens = 0
            for (split, document), ids in zip(batch, encoded, strict=True):
                tokens = np.concatenate([head, ids, tail])
                size = len(document.text.encode())
                buffer = splits.setdefault(split, BundleBuffer())
                buffer.add((document.file, document.row), tokens, size)
                num_bytes, num_tokens = num_bytes + size, num_tokens + len(tokens)
                if buffer.num_tokens >= plan.bundle_tokens:
                    close(split)
            report(num_bytes, num_tokens)
        for split in sorted(splits):
            close(split)
        writer.finish(plan.fingerprint, bundles=bundles, skipped=asdict(skipped))


def _without(documents: Iterator[tuple[str, Document]], dropped: np.ndarray) -> Iterator[tuple[str, Document]]:
    """The documents that are not dropped. Raises ValueError if they are not those that were compared."""
    number = -1
    for number, item in enumerate(documents):
        if number < len(dropped) and not dropped[number]:
            yield item
    if number + 1 != len(dropped):
        raise ValueError(
            f"the input has {number + 1:,} documents where it had {len(dropped):,} when duplicates were looked for: "
            f"run the command again with --overwrite"
        )


def batch_documents(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """Groups of about BATCH_CHARACTERS: enough to keep threads busy, and little memory."""
    batch, size = [], 0
    for item in documents:
        batch.append(item)
        size += len(item[1].text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def assemble(
    plan: PreparationPlan, folder: Path, writer: CorpusWriter, progress: Callable[[int], None] = lambda n: None
) -> Skipped:
    """Write the bundles of all pieces with `writer`, in order. Returns what was skipped.

    Raises ValueError for a damaged piece; the next run makes that piece again.
    """
    dtype = token_dtype(writer.tokenizer.vocab_size)
    skipped = replace(plan.skipped, counts=dict(plan.skipped.counts), first=dict(plan.skipped.first))
    for number in range(len(plan.pieces)):
        path, marker = piece_paths(folder, "tokens", number)
        marker_content = json.loads(marker.read_bytes())
        skipped.merge(Skipped(**marker_content["skipped"]))
        with open(path, "rb") as file:
            for bundle in marker_content["bundles"]:
                file.seek(bundle["offset"])
                tokens = np.frombuffer(file.read(bundle["num_tokens"] * dtype.itemsize), dtype=dtype)
                doclens = np.frombuffer(file.read(bundle["num_documents"] * 4), dtype="<u4")
                names = file.read(bundle["names_bytes"])
                if zlib.crc32(names, zlib.crc32(doclens.data, zlib.crc32(tokens.data))) != bundle["crc32"]:
                    marker.unlink()
                    raise ValueError(f"{path} is damaged: run the command again to make it again, and check the disk")
                writer.split(bundle["split"]).add_bundle(tokens, doclens, json.loads(names), bundle["text_bytes"])
        progress(marker_content["bytes"])
    return skipped
