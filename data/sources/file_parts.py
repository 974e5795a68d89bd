"""Reads the documents of a file part: a whole text file, or a part of a file with many documents.

The name of a file gives its kind: text (the file is a document), lines (JSON lines), parquet, arrow (as Hugging Face
`datasets` saves), tar (webdataset samples of KEY.txt or KEY.json). A text file that is divided into documents is of
kind texts. Text and lines may be compressed (.gz, .xz, .zst).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, TYPE_CHECKING

from ingot.data.sources.compressed import ENDINGS as COMPRESSED
from ingot.data.sources.compressed import open_decompressed
from ingot.data.sources.cutting import cut_documents, cut_text
from ingot.data.sources.documents import TRAIN, Document, Skipped, split_of
from ingot.data.sources.filters import Filter, lookup, parse_filter
from ingot.data.sources.tars import members_of

if TYPE_CHECKING:
    import pyarrow as pa

AUTO = "auto"  # the name of each document decides its split
MAX_RECORD_BYTES = 256_000_000  # of a JSON line or a member of a tar; longer ones are broken records
CUT = "cut at max_document_bytes"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
ENDINGS = {
    "lines": tuple(name + end for name in (".jsonl", ".json") for end in ("", *COMPRESSED)),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "tar": (".tar",),
}


@dataclass(frozen=True)
class FilePart:
    """A text file, or a part of a file of many documents. The attributes after `kind` are for the latter.

    Attributes:
        name: name of the part, inside the input.
        size: bytes; of compressed text its bytes as text.
        sha256: of the bytes, in hex; for texts that of the whole file.
        split: name of the split, or auto.
        file: name of the whole file.
        start, stop: range of the part: bytes of lines and texts, row groups of parquet, record batches of arrow. stop
            0: all.
        first_row: number of its first document, from 1.
        modified: modification time of the file in ns.
        limit: the part ends after so many bytes of text; 0: no limit.
        where: filters on other columns.
        separator: what is between two documents of texts; empty: nothing.
        max_document_bytes: a longer document is cut into several; 0: no limit.
        num_rows: number of documents of texts.
    """

    name: str
    path: Path
    size: int
    sha256: str
    split: str = TRAIN
    kind: str = "text"
    file: str = ""
    start: int = 0
    stop: int = 0
    first_row: int = 1
    modified: int = 0
    limit: int = 0
    text_column: str = "text"
    where: tuple[str, ...] = ()
    separator: str = ""
    max_document_bytes: int = 0
    num_rows: int = 0

    def split_of(self, document: Document, validation_fraction: float) -> str:
        return split_of(document.name, validation_fraction) if self.split == AUTO else self.split

    @property
    def identity(self) -> list:
        """Everything that determines the documents. The path and the time of the file do not."""
        values = [self.name, self.size, self.sha256, self.split]
        if self.kind != "text":
            values += [self.kind, self.file, self.start, self.stop, self.first_row, self.limit]
            values += [self.text_column, list(self.where)]
        if self.kind == "texts":
            values += [self.separator, self.max_document_bytes]
        return values


def kind_of(name: str) -> str:
    return next((kind for kind, endings in ENDINGS.items() if name.lower().endswith(endings)), "text")


def read_documents(
    parts: Iterable[FilePart], skipped: Skipped | None = None, *, refuse_bad: bool = False
) -> Iterator[Document]:
    """The documents of each part, in order. Of records only those that pass the filter.

    Text is UTF-8, without its byte order mark. Line ends are not changed. Records without text and broken records (a
    line that is not a JSON object, a text column that is not text) are skipped, and counted in `skipped`.

    Raises:
        ValueError: a file changed since the scan or is damaged, no record of a part has the text column (the message
            names the columns), or with `refuse_bad` the first broken record.
    """
    skipped = Skipped() if skipped is None else skipped
    for part in parts:
        if part.kind == "text":
            yield _read_text(part)
        elif part.kind == "texts":
            yield from _read_texts(part, skipped)
        else:
            yield from _read_records(part, skipped, refuse_bad)


def _read_text(part: FilePart) -> Document:
    with open_decompressed(part.path) as file:
        content = file.read(part.size + 1)
    if len(content) != part.size or hashlib.sha256(content).hexdigest() != part.sha256:
        raise ValueError(_changed(part))
    return Document(part.name, content.decode("utf-8-sig"))


def _read_texts(part: FilePart, skipped: Skipped) -> Iterator[Document]:
    _check_unchanged(part)
    taken, row = 0, part.first_row
    with open_decompressed(part.path) as file:
        skip(file, part.start)
        left = part.stop - part.start if part.stop else None
        for piece in cut_documents(file, part.separator.encode(), part.max_document_bytes, left):
            at_start = not part.start and row == part.first_row
            text = (piece.content.removeprefix(_BYTE_ORDER_MARK) if at_start else piece.content).decode()
            if not text or text.isspace():
                skipped.add("empty", f"{part.file}:{row}")
            else:
                yield Document(part.file, text, row)
                taken += len(piece.content)
            row += 1
            if part.limit and taken >= part.limit:
                return


def skip(file: IO[bytes], left: int) -> None:
    """Go forward by `left` bytes in a file that was just opened, which may be one that cannot seek."""
    if file.seekable():
        file.seek(left)
        return
    while left and (chunk := file.read(min(left, 1 << 20))):
        left -= len(chunk)


def _check_unchanged(part: FilePart) -> None:
    if part.modified and os.stat(part.path).st_mtime_ns != part.modified:
        raise ValueError(_changed(part))


class BrokenRecord(Exception):
    """Takes the place of a record that cannot be read."""


class _MissingColumn(BrokenRecord):
    def __init__(self, column: str, record: Mapping):
        self.columns = ", ".join(map(str, record)) or "none"
        super().__init__(f"no column {column!r}; it has: {self.columns}")


@lru_cache(maxsize=64)
def _filter(where: tuple[str, ...]) -> Filter:
    return parse_filter(where)


def _read_records(part: FilePart, skipped: Skipped, refuse_bad: bool) -> Iterator[Document]:
    _check_unchanged(part)
    condition, read = _filter(part.where), _READERS[part.kind]
    column, file = part.text_column, part.file or part.name
    taken = num_texts = 0
    without: tuple[str, str] | None = None  # the first record that lacks the column, and its columns
    with contextlib.closing(read(part, condition)) as records:
        for row, (where, record) in enumerate(records, part.first_row):
            try:
                if isinstance(record, BrokenRecord):
                    raise record
                if not condition.passes(record):
                    skipped.add("filtered out", f"{file}:{row}")
                    continue
                text = _text_of(record, column)
                num_texts += 1
                content = text.encode() if text else b""
            except (BrokenRecord, UnicodeEncodeError) as error:
                if isinstance(error, _MissingColumn):
                    without = without or (where, error.columns)
                if refuse_bad:
                    remedy = "fix it, name the column with text_column, or skip such records with --bad_records skip"
                    raise ValueError(f"{part.path}, {where}: {error}: {remedy}") from error
                skipped.add("broken records", f"{file}, {where}: {error}")
                continue
            if not text or text.isspace():
                skipped.add("empty", f"{file}:{row}")
                continue
            texts = cut_text(text, content, part.max_document_bytes)
            skipped.add(CUT, f"{file}:{row}", int(len(texts) > 1))
            for each in texts:
                yield Document(file, each, row)
            taken += len(content)
            if part.limit and taken >= part.limit:
                return
    if without and not num_texts:
        raise ValueError(
            f"{part.path}: no record has a column {column!r}; {without[0]} has: {without[1]}. "
            f"Name one of them with text_column"
        )


def _text_of(record: Mapping, column: str) -> str | None:
    text = lookup(record, column)
    if text is None and column not in record:
        raise _MissingColumn(column, record)
    if text is not None and not isinstance(text, str):
        raise BrokenRecord(f"column {column!r} is {type(text).__name__}, not text")
    return text


def _read_lines(part: FilePart, condition: Filter) -> Generator[tuple[str, Mapping | BrokenRecord]]:
    with open_decompressed(part.path) as file:
        if part.start:
            file.seek(part.start)
        row, left = part.first_row, (part.stop - part.start) or None
        while left is None or left > 0:
            try:
                line = file.readline(MAX_RECORD_BYTES + 1)
            except Exception as error:  # each compression has its own classes of errors
                raise ValueError(f"{part.path} is damaged at line {row}: {error}") from error
            if not line:
                return
            size = len(line)
            if size > MAX_RECORD_BYTES:
                size += skip_line(file)
                yield f"line {row}", _too_large(size)
            else:
                if row == 1:
                    line = line.removeprefix(_BYTE_ORDER_MARK)
                yield f"line {row}", _parse(line) if line.strip() else {part.text_column: None}
            left = left and left - size
            row += 1


def skip_line(file: IO[bytes]) -> int:
    """Go to the end of the line. Returns the number of bytes."""
    size = 0
    while chunk := file.readline(1 << 20):
        size += len(chunk)
        if chunk.endswith(b"\n"):
            break
    return size


def _too_large(size: int) -> BrokenRecord:
    return BrokenRecord(f"it has {size:,} bytes, more than the {MAX_RECORD_BYTES:,} that a record may have")


def _parse(line: bytes) -> Mapping | BrokenRecord:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return BrokenRecord(f"not valid JSON ({error})")
    return record if isinstance(record, dict) else BrokenRecord(f"a JSON {type(record).__name__}, not an object")


def table_columns(columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The top-level columns of a table that contain the `wanted` ones (`a.b` is inside `a`)."""
    have = list(columns)
    tops = [name if name in have else name.split(".")[0] for name in wanted]
    return list(dict.fromkeys(top for top in tops if top in have))


def _read_parquet(part: FilePart, condition: Filter) -> Generator[tuple[str, Mapping | BrokenRecord]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(part.path) as file:
        columns = table_columns(file.schema_arrow.names, [part.text_column, *condition.columns])
        groups = range(part.start, part.stop)
        yield from _rows(file.iter_batches(256, row_groups=groups, columns=columns, use_threads=False), part)


def _read_arrow(part: FilePart, condition: Filter) -> Generator[tuple[str, Mapping | BrokenRecord]]:
    import pyarrow as pa

    with pa.memory_map(str(part.path)) as file, pa.ipc.open_stream(file) as stream:
        columns = table_columns(stream.schema.names, [part.text_column, *condition.columns])
        batches = (batch for number, batch in enumerate(stream) if part.start <= number < part.stop)
        yield from _rows((batch.select(columns) for batch in batches), part)


def _rows(batches: Iterable[pa.RecordBatch], part: FilePart) -> Generator[tuple[str, Mapping | BrokenRecord]]:
    row = part.first_row
    for batch in batches:
        for record in batch.to_pylist():
            yield f"row {row}", record
            row += 1


def _read_tar(part: FilePart, condition: Filter) -> Generator[tuple[str, Mapping | BrokenRecord]]:
    """Samples of a webdataset tar: consecutive members with the same key.

    Their columns are those of KEY.json; KEY.txt is the text."""
    with open(part.path, "rb") as file:
        key = None
        sample: dict[str, bytes | BrokenRecord] = {}
        for member in members_of(file, Path(part.path), ("txt", "json"), max_bytes=sys.maxsize):
            if member.key != key and sample:
                yield f"sample {key}", _sample(sample, part.text_column)
                sample = {}
            key = member.key
            if member.size > MAX_RECORD_BYTES:
                sample[member.extension] = _too_large(member.size)
                continue
            file.seek(member.offset)
            sample[member.extension] = file.read(member.size)
        if sample:
            yield f"sample {key}", _sample(sample, part.text_column)


def _sample(found: dict[str, bytes | BrokenRecord], text_column: str) -> Mapping | BrokenRecord:
    parts = {extension: content for extension, content in found.items() if isinstance(content, bytes)}
    for content in found.values():
        if isinstance(content, BrokenRecord):
            return content
    if not parts.keys() & {"txt", "json"}:
        return BrokenRecord(f"neither .txt nor .json, only .{', .'.join(parts)}")
    record = _parse(parts["json"]) if "json" in parts else {}
    if isinstance(record, BrokenRecord) or "txt" not in parts:
        return record
    try:
        return {**record, text_column: parts["txt"].decode("utf-8-sig")}
    except UnicodeDecodeError as error:
        return BrokenRecord(f"not UTF-8 ({error})")


_READERS = {"lines": _read_lines, "parquet": _read_parquet, "arrow": _read_arrow, "tar": _read_tar}


def _changed(part: FilePart) -> str:
    return f"{part.path} changed while the corpus was made: run the command again"
