"""Divides a file into parts that can be read and tokenized independently.

The borders of the parts depend only on the file and the wanted size, not on the number of workers.
"""

from __future__ import annotations

import codecs
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ingot.data.sources.compressed import is_compressed, open_decompressed
from ingot.data.sources.cutting import cut_documents
from ingot.data.sources.documents import Skipped
from ingot.data.sources.file_parts import AUTO, CUT, FilePart, kind_of, table_columns
from ingot.data.sources.filters import parse_filter

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int], None]


def scan_file(
    name: str,
    path: Path,
    skipped: Skipped,
    *,
    part_bytes: int,
    text_column: str = "text",
    where: Sequence[str] = (),
    split: str = AUTO,
    separator: str = "",
    max_document_bytes: int = 0,
    progress: Progress = lambda num_bytes: None,
) -> list[FilePart]:
    """The parts of a file, which is read once. A file that is not text, empty or unreadable has no parts.

    Plain JSON lines are divided at the first line end after each `part_bytes` bytes, plain text of many documents at
    the end of one. Tables are divided between row groups (or record batches) when their data reaches that size. What is
    compressed, and tars, are one part.

    Args:
        skipped: counts a file without parts.
        where: filters on other columns.
        separator: what is between two documents of a text file; empty: a text file is one document.
        max_document_bytes: a longer document is cut into several; 0: no limit.
        progress: gets the number of bytes that were read.

    Raises:
        ValueError: a table lacks the text column or a column of a filter, or is damaged.
    """
    kind = kind_of(name)
    if kind == "text" and is_compressed(name) and kind_of(Path(name).stem) != "text":
        raise ValueError(f"{path} is compressed, and only text and JSON lines are read so: unpack it first")
    if kind == "text" and where:
        raise ValueError(f"{path} is one document and has no columns to filter: name it as an input without where")
    try:
        if kind == "text":
            whole = _whole_text(name, path, split, skipped, progress)
            if whole is None or (not separator and (not max_document_bytes or whole.size <= max_document_bytes)):
                return [] if whole is None else [whole]
            return _texts(whole, part_bytes, separator, max_document_bytes, skipped)
        stamp = os.stat(path)
        if stamp.st_size == 0:
            skipped.add("empty", name)
            return []
        parts = list(_RANGES.get(kind, _whole)(path, part_bytes, [text_column, *parse_filter(where).columns], progress))
    except OSError as error:
        if kind != "text" and not isinstance(error, PermissionError):
            raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
        skipped.add("unreadable", name)
        return []
    return [
        FilePart(
            name=name if len(parts) == 1 else f"{name}#{number:05d}",
            path=Path(path),
            size=size,
            sha256=sha256,
            split=split,
            kind=kind,
            file=name,
            start=start,
            stop=stop,
            first_row=first_row,
            modified=stamp.st_mtime_ns,
            text_column=text_column,
            where=tuple(where),
            max_document_bytes=max_document_bytes,
        )
        for number, (start, stop, first_row, size, sha256) in enumerate(parts)
    ]


def _whole_text(name: str, path: Path, split: str, skipped: Skipped, progress: Progress) -> FilePart | None:
    decoder, digest = codecs.getincrementaldecoder("utf-8-sig")(), hashlib.sha256()
    size, empty = 0, True
    try:
        with open_decompressed(path) as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
                size += len(chunk)
                text = decoder.decode(chunk)
                empty = empty and not text.strip()
                progress(0 if is_compressed(path) else len(chunk))
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        skipped.add("not UTF-8", name)
        return None
    except Exception as error:  # each compression has its own classes of errors
        if not is_compressed(path) or isinstance(error, PermissionError | ValueError):
            raise
        raise ValueError(f"{path} is damaged: {error}") from error
    if is_compressed(path):
        progress(os.stat(path).st_size)
    if empty:
        skipped.add("empty", name)
        return None
    return FilePart(name, path, size, digest.hexdigest(), split)


def _texts(
    whole: FilePart, part_bytes: int, separator: str, max_document_bytes: int, skipped: Skipped
) -> list[FilePart]:
    """The parts of a text file of many documents."""
    whole = replace(whole, kind="texts", file=whole.name, separator=separator, max_document_bytes=max_document_bytes)
    whole = replace(whole, modified=os.stat(whole.path).st_mtime_ns)
    parts: list[FilePart] = []
    start = stop = rows = 0
    first_row, is_rest = 1, False
    with open_decompressed(whole.path) as file:
        for piece in cut_documents(file, separator.encode(), max_document_bytes):
            stop, rows = stop + piece.size, rows + 1
            skipped.add(CUT, f"{whole.name}:{first_row + rows - 1}", int(piece.is_cut and not is_rest))
            is_rest = piece.is_cut
            if (stop - start >= part_bytes and not is_compressed(whole.path)) or stop == whole.size:
                name, size = f"{whole.name}#{len(parts):05d}", stop - start
                part = replace(whole, name=name, size=size, start=start, stop=stop, first_row=first_row, num_rows=rows)
                parts.append(part)
                start, first_row, rows = stop, first_row + rows, 0
    if stop != whole.size:
        raise ValueError(f"{whole.path} changed while it was read: run the command again")
    return parts if len(parts) > 1 else [replace(parts[0], name=whole.name)]


Range = tuple[int, int, int, int, str]  # start, stop, first row, bytes, sha256


def _whole(path: Path, part_bytes: int, columns: Sequence[str], progress: Progress) -> Iterator[Range]:
    size, sha256 = _digest(path, progress)
    yield 0, 0, 1, size, sha256


def _digest(path: Path, progress: Progress) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            size += len(chunk)
            progress(len(chunk))
    return size, digest.hexdigest()


def _lines(path: Path, part_bytes: int, columns: Sequence[str], progress: Progress) -> Iterator[Range]:
    if is_compressed(path):
        yield from _whole(path, part_bytes, columns, progress)
        return
    start, row = 0, 1
    with open(path, "rb") as file:
        while True:
            digest, size, num_lines = hashlib.sha256(), 0, 0
            while size < part_bytes and (chunk := file.read(min(1 << 20, part_bytes - size))):
                digest.update(chunk)
                size += len(chunk)
                num_lines += chunk.count(b"\n")
            if not size:
                return
            while not chunk.endswith(b"\n") and (chunk := file.readline(1 << 20)):  # a line may have any length
                digest.update(chunk)
                size += len(chunk)
                num_lines += chunk.endswith(b"\n")
            progress(size)
            yield start, start + size, row, size, digest.hexdigest()
            start, row = start + size, row + num_lines


def _parquet(path: Path, part_bytes: int, columns: Sequence[str], progress: Progress) -> Iterator[Range]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            _check_columns(path, file.schema_arrow, columns)
            groups = [file.metadata.row_group(number) for number in range(file.metadata.num_row_groups)]
            sizes = [(group.num_rows, group.total_byte_size) for group in groups]
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged or not a parquet file: {error}") from error
    yield from _runs(sizes, part_bytes, *_digest(path, progress))


def _arrow(path: Path, part_bytes: int, columns: Sequence[str], progress: Progress) -> Iterator[Range]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as stream:
            _check_columns(path, stream.schema, columns)
            sizes = [(batch.num_rows, batch.nbytes) for batch in stream]
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged or not an arrow stream: {error}") from error
    yield from _runs(sizes, part_bytes, *_digest(path, progress))


def _runs(sizes: Sequence[tuple[int, int]], part_bytes: int, size: int, sha256: str) -> Iterator[Range]:
    """Runs of consecutive (rows, bytes), each of at least `part_bytes` except the last one. The file's bytes are
    divided
    among the runs in proportion to their data."""
    whole = max(1, sum(num_bytes for _, num_bytes in sizes))
    begin, row, rows, gathered, done = 0, 1, 0, 0, 0
    for number, (num_rows, num_bytes) in enumerate(sizes, 1):
        rows, gathered = rows + num_rows, gathered + num_bytes
        if gathered >= part_bytes or number == len(sizes):
            run_size = size * (done + gathered) // whole - size * done // whole
            yield begin, number, row, run_size, sha256
            begin, row, rows, gathered, done = number, row + rows, 0, 0, done + gathered


def _check_columns(path: Path, schema: pa.Schema, columns: Sequence[str]) -> None:
    import pyarrow as pa

    texts = [field.name for field in schema if _is_text(field.type)]
    for name in columns:
        if not table_columns(schema.names, [name]):
            raise ValueError(
                f"{path} has no column {name!r}; it has: {', '.join(schema.names)} (with text: {', '.join(texts)}). "
                f"Name one of them with text_column, or in the filter"
            )
    first = columns[0]
    if (
        first in schema.names
        and not _is_text(schema.field(first).type)
        and not pa.types.is_null(schema.field(first).type)
    ):
        raise ValueError(
            f"{path}: column {first!r} has type {schema.field(first).type}, not text; columns with text: "
            f"{', '.join(texts) or 'none'}. Name one of them with text_column"
        )


def _is_text(kind: pa.DataType) -> bool:
    import pyarrow as pa

    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    return pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value)


_RANGES = {"lines": _lines, "parquet": _parquet, "arrow": _arrow}
