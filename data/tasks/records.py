"""Records of a downstream task, from a table or JSON: named values, and the location of each record.

Nothing is guessed: a row that does not fit its header, or a missing column, is refused with its location.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.data.sources.text_files import parse_json, read_text

ENDINGS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
LONGEST_FIELD = 2**31 - 1  # of a .csv; the csv module's own limit is 131,072 characters


@dataclass(frozen=True)
class Record:
    """`values` by column; `where` is the name of the file and the location in it, such as "train.tsv, line 3"."""

    values: dict[str, Any]
    where: str


def read_records(path: str | Path, columns: Sequence[str]) -> list[Record]:
    """The records of a file, or of a folder that `datasets` saved, with all their columns, in order.

    The ending of the file's name decides how it is read:
    .tsv      a header line, then rows; no quoting, as in GLUE (Wang et al. 2018): a quote is an ordinary character
    .csv      a header line, then rows, quoted as in RFC 4180
    .jsonl    an object a line
    .json     a list of objects
    .parquet  a table
    folder    what `Dataset.save_to_disk` wrote; FOLDER:SPLIT for one split of a `DatasetDict`

    Values of .tsv and .csv are texts; others keep their types. Blank lines are skipped.

    Args:
        columns: names that each record must have.

    Raises:
        ValueError: not UTF-8, empty or damaged; no rows; columns missing, or two of one name; a row with more or fewer
            fields than the header; an unknown ending; a missing split. The message names the file, and the line or row.
        OSError: a file that cannot be read.
    """
    assert not isinstance(columns, str), "columns are several names"
    folder, split = _folder_and_split(str(path))
    ending = Path(path).suffix.lower()
    if folder is not None:
        numbered = _read_folder(folder, split)
    elif ending in _READERS:
        numbered = _READERS[ending](Path(path))
    else:
        raise ValueError(
            f"{path} is not a folder, and its name ends in none of {', '.join(ENDINGS)}, so its format is unknown"
        )
    records, name = [], Path(path).name
    for location, values in numbered:
        missing = [column for column in columns if column not in values]
        if missing:
            raise ValueError(
                f"{path}, {location}: no column {', '.join(map(repr, missing))}; "
                f"there are: {', '.join(map(repr, values)) or 'none'}; task.text_columns and task.label_column name "
                f"those that are read"
            )
        records.append(Record(values, f"{name}, {location}"))
    if not records:
        raise ValueError(f"{path} holds no rows")
    return records


def _read_tsv(path: Path) -> Iterator[tuple[str, dict]]:
    lines = (line.removesuffix("\r") for line in read_text(path).split("\n"))
    rows = ((number, line.split("\t")) for number, line in enumerate(lines, 1) if line)
    return _under_header(path, rows, "a .tsv has no quoting, so that a value can hold neither tab nor line end")


def _read_csv(path: Path) -> Iterator[tuple[str, dict]]:
    return _under_header(path, _csv_rows(path), "put values with a comma or a line end in quotes")


def _csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    limit = csv.field_size_limit(LONGEST_FIELD)
    reader, start = csv.reader(io.StringIO(read_text(path), newline=""), strict=True), 1
    try:
        for row in reader:
            if row:
                yield start, row
            start = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}, line {start}: not valid CSV: {error}") from error
    finally:
        csv.field_size_limit(limit)


def _under_header(path: Path, rows: Iterator[tuple[int, list[str]]], remedy: str) -> Iterator[tuple[str, dict]]:
    number, header = next(rows)  # there is one: `read_text` refuses a blank file
    twice = sorted({column for column in header if header.count(column) > 1})
    if twice:
        raise ValueError(f"{path}, line {number}: the header has {', '.join(map(repr, twice))} more than once")
    for number, row in rows:
        if len(row) != len(header):
            raise ValueError(f"{path}, line {number}: {len(row)} fields, and the header has {len(header)}; {remedy}")
        yield f"line {number}", dict(zip(header, row, strict=True))


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict]]:
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            location = f"line {number}"
            yield location, _object(parse_json(line, f"{path}, {location}"), f"{path}, {location}")


def _read_json(path: Path) -> Iterator[tuple[str, dict]]:
    try:
        values = parse_json(read_text(path), str(path))
    except ValueError as error:
        if "Extra data" not in str(error):
            raise
        raise ValueError(f"{error}; if it has an object a line, name it .jsonl") from error
    if not isinstance(values, list):
        raise ValueError(f"{path} is a JSON {type(values).__name__}, not a list of objects")
    for number, value in enumerate(values, 1):
        yield f"record {number}", _object(value, f"{path}, record {number}")


def _object(value: Any, location: str) -> dict:
    if not isinstance(value, dict):
        raise ValueError(f"{location} is a JSON {type(value).__name__}, not an object")
    return value


def _read_parquet(path: Path) -> Iterator[tuple[str, dict]]:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowException as error:
        raise ValueError(f"{path} is damaged or no parquet file: {error}") from error
    return _rows(datasets.Dataset(table))  # unlike Dataset.from_parquet, leaves no copy in a cache


def _folder_and_split(path: str) -> tuple[Path | None, str]:
    if Path(path).is_dir():
        return Path(path), ""
    folder, colon, split = path.rpartition(":")
    return (Path(folder), split) if colon and Path(folder).is_dir() else (None, "")


def _read_folder(folder: Path, split: str) -> Iterator[tuple[str, dict]]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
    except Exception as error:  # of a missing file, of JSON, of Arrow
        raise ValueError(f"{folder} cannot be opened as what `save_to_disk` of datasets writes: {error}") from error
    if isinstance(saved, datasets.DatasetDict):
        if split not in saved:
            splits = ", ".join(saved)
            wrong = f"has no split {split!r}" if split else "has several splits"
            raise ValueError(f"{folder} {wrong}; name one as {folder}:SPLIT; there are: {splits}")
        saved = saved[split]
    elif split:
        raise ValueError(f"{folder} has no splits; leave out :{split}")
    return _rows(saved)


def _rows(table: Any) -> Iterator[tuple[str, dict]]:
    return ((f"row {number}", row) for number, row in enumerate(table.to_list(), 1))


_READERS = {
    ".tsv": _read_tsv,
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".parquet": _read_parquet,
}
assert tuple(_READERS) == ENDINGS
