"""Preparation in pieces: runs of sources that are worked on each on its own, in any order, by anybody.

A finished piece of a stage is a file of bytes and, written after it, a marker with its size and sha256. What is in
them follows from the sources and the settings, so a run that was killed goes on with the pieces that have no marker,
and the whole is the same for any number of workers.
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

import numpy as np

from ingot.data.corpus.manifest import token_dtype
from ingot.data.sources.documents import Document, Skipped, names_of
from ingot.data.sources.file_parts import FilePart, read_documents
from ingot.data.tokenizers.tokenizer import Tokenizer
from ingot.data.writing.writer import BundleBuffer, CorpusWriter, add_special_tokens, write_json
from ingot.durable_files import flush_to_disk, sync_folder

PLAN, PLAN_FORMAT, PLAN_VERSION = "plan.json", "ingot-preparation", 1
BATCH_BYTES = 1_000_000  # of text encoded at once


@dataclass
class PreparationPlan:
    """All that the work follows from. `asked` names the command, `fingerprint` also the content of its inputs."""

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
        for sources in values["pieces"]:
            for source in sources:
                source["path"] = str(source["path"])
        write_json(folder / PLAN, {"format": PLAN_FORMAT, "version": PLAN_VERSION, **values})

    @staticmethod
    def load(folder: Path) -> PreparationPlan | None:
        """The plan in `folder`; None where there is none that this program wrote."""
        try:
            values = json.loads((folder / PLAN).read_bytes())
            if (values.pop("format"), values.pop("version")) != (PLAN_FORMAT, PLAN_VERSION):
                return None
            values["skipped"] = Skipped(**values["skipped"])
            source = lambda s: FilePart(**{**s, "path": Path(s["path"]), "where": tuple(s["where"])})  # noqa: E731
            values["pieces"] = [[source(s) for s in sources] for sources in values["pieces"]]
            return PreparationPlan(**values)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def documents(self, number: int, skipped: Skipped) -> Iterator[tuple[str, Document]]:
        """(split, document) of a piece, in order, before duplicates are removed."""
        for source in self.pieces[number]:
            for document in read_documents([source], skipped, refuse_bad=self.refuse_bad):
                yield source.split_of(document, self.validation_fraction), document


def group_into_pieces(sources: Sequence[FilePart], piece_bytes: int) -> list[list[FilePart]]:
    """Runs of consecutive sources with at least `piece_bytes` bytes each, but for the last."""
    pieces: list[list[FilePart]] = []
    size = piece_bytes
    for source in sources:
        if size >= piece_bytes:
            pieces.append([])
            size = 0
        pieces[-1].append(source)
        size += source.size
    return pieces


def piece_paths(folder: Path, stage: str, number: int) -> tuple[Path, Path]:
    """The file and the marker of a piece."""
    return folder / f"{stage}-{number:06d}.bin", folder / f"{stage}-{number:06d}.json"


class PieceWriter:
    """The file of a piece while it is written; `finish` makes it a whole piece, `discard` leaves nothing."""

    def __init__(self, folder: Path, stage: str, number: int):
        self.folder = folder
        self.path, self.marker = piece_paths(folder, stage, number)
        self._temporary = self.path.with_suffix(f".{os.getpid()}.tmp")
        self._file = open(self._temporary, "wb")  # noqa: SIM115  (closed in finish and discard)
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, content: bytes | memoryview) -> int:
        """Append; the offset of the content."""
        offset = self.size
        self._hash.update(content)
        self._file.write(content)
        self.size += memoryview(content).nbytes
        return offset

    def finish(self, fingerprint: str, **about) -> None:
        flush_to_disk(self._file)
        self._file.close()
        self._temporary.rename(self.path)
        sync_folder(self.folder)
        mark = {"fingerprint": fingerprint, "bytes": self.size, "sha256": self._hash.hexdigest()}
        write_json(self.marker, {**mark, **about})

    def discard(self) -> None:
        self._file.close()
        self._temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def new_piece(folder: Path, stage: str, number: int) -> Iterator[PieceWriter]:
    writer = PieceWriter(folder, stage, number)
    try:
        yield writer
    except BaseException:
        writer.discard()
        raise


def finished_piece(folder: Path, stage: str, number: int, fingerprint: str, *, whole: bool = False) -> dict | None:
    """The marker of a piece that is done and of this plan, else None. With `whole` its bytes are read and compared."""
    path, marker = piece_paths(folder, stage, number)
    try:
        mark = json.loads(marker.read_bytes())
        if mark["fingerprint"] != fingerprint or path.stat().st_size != mark["bytes"]:
            return None
        if whole:
            with open(path, "rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != mark["sha256"]:
                    return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return mark


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

    `dropped` says for each document of the piece whether it is left out; `report` gets bytes of text and tokens.
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
            gathered = splits.pop(split)
            tokens, doclens = gathered.arrays()
            names = json.dumps(names_of(gathered.places)).encode()
            bundles.append(
                {
                    "split": split,
                    "offset": writer.write(tokens.data),
                    "num_tokens": len(tokens),
                    "num_documents": len(doclens),
                    "names_bytes": len(names),
                    "text_bytes": gathered.text_bytes,
                    "crc32": zlib.crc32(names, zlib.crc32(doclens, zlib.crc32(tokens))),
                }
            )
            writer.write(doclens.data)
            writer.write(names)

        documents = plan.documents(number, skipped)
        if dropped is not None:
            documents = (item for item, drop in zip(documents, dropped, strict=True) if not drop)
        for batch in batches(documents):
            encoded = tokenizer.encode_arrays([document.text for _, document in batch], dtype, threads)
            num_bytes = num_tokens = 0
            for (split, document), ids in zip(batch, encoded, strict=True):
                tokens = np.concatenate([head, ids, tail])
                size = len(document.text.encode())
                gathered = splits.setdefault(split, BundleBuffer())
                gathered.add((document.file, document.row), tokens, size)
                num_bytes, num_tokens = num_bytes + size, num_tokens + len(tokens)
                if gathered.num_tokens >= plan.bundle_tokens:
                    close(split)
            report(num_bytes, num_tokens)
        for split in sorted(splits):
            close(split)
        writer.finish(plan.fingerprint, bundles=bundles, skipped=asdict(skipped))


def batches(documents: Iterable[tuple[str, Document]]) -> Iterator[list[tuple[str, Document]]]:
    """Runs of about BATCH_BYTES characters: enough to keep threads busy, little to hold."""
    batch, size = [], 0
    for item in documents:
        batch.append(item)
        size += len(item[1].text)
        if size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def assemble(
    plan: PreparationPlan, folder: Path, writer: CorpusWriter, progress: Callable[[int], None] = lambda n: None
) -> Skipped:
    """Put the bundles of all pieces into `writer`, in order; what was left out on the way.

    Raises ValueError for a piece whose bytes are not those that were written; it is done again by the next run.
    """
    dtype = token_dtype(writer.tokenizer.vocab_size)
    skipped = replace(plan.skipped, counts=dict(plan.skipped.counts), first=dict(plan.skipped.first))
    for number in range(len(plan.pieces)):
        path, marker = piece_paths(folder, "tokens", number)
        mark = json.loads(marker.read_bytes())
        skipped.merge(Skipped(**mark["skipped"]))
        with open(path, "rb") as file:
            for bundle in mark["bundles"]:
                file.seek(bundle["offset"])
                tokens = np.frombuffer(file.read(bundle["num_tokens"] * dtype.itemsize), dtype=dtype)
                doclens = np.frombuffer(file.read(bundle["num_documents"] * 4), dtype="<u4")
                names = file.read(bundle["names_bytes"])
                if zlib.crc32(names, zlib.crc32(doclens, zlib.crc32(tokens))) != bundle["crc32"]:
                    marker.unlink()
                    raise ValueError(f"{path} is damaged: run again, it will be made anew (and look at the disk)")
                writer.split(bundle["split"]).add_bundle(tokens, doclens, json.loads(names), bundle["text_bytes"])
        progress(mark["bytes"])
    return skipped
