"""A source is a file of text, or a part of a file with many records; here its documents are read.

Kinds, by the name of the file: text (the file is a document), lines (JSON lines, plain or .gz or .zst), parquet,
arrow (as Hugging Face `datasets` saves), tar (webdataset samples of KEY.txt or KEY.json).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ingot.data.sources.documents import TRAIN, Document, Skipped, split_of
from ingot.data.sources.filters import Filter, lookup, parse_filter
from ingot.data.sources.tars import members_of

AUTO = "auto"  # a split that each document's name decides
MAX_RECORD_BYTES = 256_000_000  # of a JSON line or a tar's member; what is longer is refused, not held in memory
ENDINGS = {
    "lines": (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst"),
    "parquet": (".parquet",),
    "arrow": (".arrow",),
    "tar": (".tar",),
}


@dataclass(frozen=True)
class FilePart:
    """`name` inside the input, `path`, bytes, sha256 of the bytes (hex), and split: a name, or auto.

    The rest is for files of records: `file` is the name of the whole file; `start` and `stop` bound the part (bytes of
    lines, row groups of parquet, record batches of arrow; stop 0: all); `first_row` is the number of its first record;
    `modified` the file's time in ns; `limit` ends it after so many bytes of text (0: never).
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

    def split_of(self, document: Document, validation_fraction: float) -> str:
        return split_of(document.name, validation_fraction) if self.split == AUTO else self.split

    @property
    def identity(self) -> list:
        """Everything that the documents follow from; neither the place nor the time of the file."""
        values = [self.name, self.size, self.sha256, self.split]
        if self.kind != "text":
            values += [self.kind, self.file, self.start, self.stop, self.first_row, self.limit]
            values += [self.text_column, list(self.where)]
        return values


def kind_of(name: str) -> str:
    return next((kind for kind, endings in ENDINGS.items() if name.lower().endswith(endings)), "text")


def read_documents(
    sources: Iterable[FilePart], skipped: Skipped | None = None, *, refuse_bad: bool = False
) -> Iterator[Document]:
    """The documents of each source in order; of lines and tables those whose record passes the filter.

    Text is UTF-8 without its byte order mark, line ends as they are. Records without text are left out and counted in
    `skipped`, as are broken ones (a line that is no JSON object, a text that is no text).

    Raises ValueError for a file that changed since the scan or is damaged, for a source in which no record has the
    text column (naming those that are there), and with `refuse_bad` for the first broken record.
    """
    skipped = Skipped() if skipped is None else skipped
    for source in sources:
        if source.kind == "text":
            yield _read_text(source)
        else:
            yield from _read_records(source, skipped, refuse_bad)


def _read_text(source: FilePart) -> Document:
    content = Path(source.path).read_bytes()
    if len(content) != source.size or hashlib.sha256(content).hexdigest() != source.sha256:
        raise ValueError(_changed(source))
    return Document(source.name, content.decode("utf-8-sig"))


class BrokenRecord(Exception):
    """Stands in place of a record that cannot be read."""


@lru_cache(maxsize=64)
def _filter(where: tuple[str, ...]) -> Filter:
    return parse_filter(where)


def _read_records(source: FilePart, skipped: Skipped, refuse_bad: bool) -> Iterator[Document]:
    status = os.stat(source.path)
    if source.modified and status.st_mtime_ns != source.modified:
        raise ValueError(_changed(source))
    condition, read = _filter(source.where), _READERS[source.kind]
    column, file = source.text_column, source.file or source.name
    taken = num_texts = 0
    without: tuple[str, str] | None = None  # the first record that lacks the column, and its columns
    with contextlib.closing(read(source, condition)) as records:
        for row, (place, record) in enumerate(records, source.first_row):
            try:
                if isinstance(record, BrokenRecord):
                    raise record
                if not condition.passes(record):
                    skipped.add("filtered out", f"{file}:{row}")
                    continue
                text = lookup(record, column)
                if text is None and column not in record:
                    without = without or (place, ", ".join(map(str, record)) or "none")
                    raise BrokenRecord(f"no column {column!r}; it has: {', '.join(map(str, record)) or 'none'}")
                if text is not None and not isinstance(text, str):
                    raise BrokenRecord(f"column {column!r} is {type(text).__name__}, not text")
                num_texts += 1
                num_bytes = len(text.encode()) if text else 0
            except (BrokenRecord, UnicodeEncodeError) as error:
                if refuse_bad:
                    remedy = "mend it, name the column with text_column, or skip such records with --bad_records skip"
                    raise ValueError(f"{source.path}, {place}: {error}: {remedy}") from error
                skipped.add("broken records", f"{file}, {place}: {error}")
                continue
            if num_bytes == 0 or text.isspace():
                skipped.add("empty", f"{file}:{row}")
                continue
            yield Document(file, text, row)
            taken += num_bytes
            if source.limit and taken >= source.limit:
                return
    if without and not num_texts:
        raise ValueError(
            f"{source.path}: no record has a column {column!r}; at {without[0]} there are: {without[1]}. "
            f"Name one of them with text_column"
        )


def _read_lines(source: FilePart, condition: Filter) -> Iterator[tuple[str, Mapping | BrokenRecord]]:
    with open_lines(source.path) as file:
        if source.start:
            file.seek(source.start)
        row, left = source.first_row, (source.stop - source.start) or None
        while left is None or left > 0:
            try:
                line = file.readline(MAX_RECORD_BYTES + 1)
            except Exception as error:  # each kind of compression has errors of its own
                raise ValueError(f"{source.path} is damaged at line {row}: {error}") from error
            if not line:
                return
            if len(line) > MAX_RECORD_BYTES:
                raise ValueError(f"{source.path}, line {row} has more than {MAX_RECORD_BYTES:,} bytes: refused")
            left = left and left - len(line)
            if row == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield f"line {row}", _parse(line) if line.strip() else {source.text_column: None}
            row += 1


def open_lines(path: Path):
    """A binary file of lines, decompressed on the way where the name ends in .gz or .zst."""
    if str(path).lower().endswith(".gz"):
        import gzip

        return gzip.open(path, "rb")
    if str(path).lower().endswith(".zst"):
        from ingot.data.sources.zstd import open_zstd

        return open_zstd(path)
    return open(path, "rb")


def _parse(line: bytes) -> Mapping | BrokenRecord:
    try:
        record = json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        return BrokenRecord(f"not valid JSON ({error})")
    return record if isinstance(record, dict) else BrokenRecord(f"a JSON {type(record).__name__}, not an object")


def table_columns(source_columns: Iterable[str], wanted: Iterable[str]) -> list[str]:
    """The top columns of a table that hold `wanted` ones (`a.b` lies in `a`)."""
    have = list(source_columns)
    tops = [name if name in have else name.split(".")[0] for name in wanted]
    return list(dict.fromkeys(top for top in tops if top in have))


def _read_parquet(source: FilePart, condition: Filter) -> Iterator[tuple[str, Mapping]]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(source.path) as file:
        columns = table_columns(file.schema_arrow.names, [source.text_column, *condition.columns])
        groups = range(source.start, source.stop)
        yield from _rows(file.iter_batches(256, row_groups=groups, columns=columns, use_threads=False), source)


def _read_arrow(source: FilePart, condition: Filter) -> Iterator[tuple[str, Mapping]]:
    import pyarrow as pa

    with pa.memory_map(str(source.path)) as file, pa.ipc.open_stream(file) as stream:
        columns = table_columns(stream.schema.names, [source.text_column, *condition.columns])
        batches = (batch for number, batch in enumerate(stream) if source.start <= number < source.stop)
        yield from _rows((batch.select(columns) for batch in batches), source)


def _rows(batches, source: FilePart) -> Iterator[tuple[str, Mapping]]:
    row = source.first_row
    for batch in batches:
        for record in batch.to_pylist():
            yield f"row {row}", record
            row += 1


def _read_tar(source: FilePart, condition: Filter) -> Iterator[tuple[str, Mapping | BrokenRecord]]:
    """Samples of a webdataset tar: neighbours of one key. Their columns: those of KEY.json, and KEY.txt as the text."""
    with open(source.path, "rb") as file:
        key, sample = None, {}
        for member in members_of(file, Path(source.path), ("txt", "json"), MAX_RECORD_BYTES):
            if member.key != key and sample:
                yield f"sample {key}", _sample(sample, source.text_column)
                sample = {}
            key = member.key
            file.seek(member.offset)
            sample[member.extension] = file.read(member.size)
        if sample:
            yield f"sample {key}", _sample(sample, source.text_column)


def _sample(parts: dict[str, bytes], text_column: str) -> Mapping | BrokenRecord:
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


def _changed(source: FilePart) -> str:
    return f"{source.path} changed while the corpus was being made: run again"
