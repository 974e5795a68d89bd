"""Which of several endings follows a text: each ending with the text is a document of the example."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import TextEncoder, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.labels import class_name
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer


def read_multiple_choice(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """Each record is an example with one document for each ending; the target is the number of the right ending,
    counted from 0, int64 ().

    `text_columns` are the text, then each ending, or one column with a list of the endings. See `ReadTask`.
    """
    encoder, column = TextEncoder(tokenizer, settings), settings.label_column
    records = read_records(path, [*settings.text_columns, *([column] if labelled else [])])
    examples = []
    for index, documents in enumerate(_encode(records, settings.text_columns, encoder)):
        ids, types = (np.concatenate(side) for side in zip(*documents, strict=True))
        target = _right_ending(records[index], column, len(documents)) if labelled else IGNORE_INDEX
        lengths = tuple(len(each) for each, _ in documents)
        examples.append(Example(ids, types, np.array(target), int(labelled), index, lengths))
    return TaskData(examples, records, settings, num_truncated=encoder.num_truncated)


def _encode(
    records: Sequence[Record], columns: Sequence[str], encoder: TextEncoder
) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """Ids and token types of the documents of each record."""
    endings = [_endings(record, columns) for record in records]
    count = len(endings[0])
    for record, found in zip(records, endings, strict=True):
        if len(found) != count:
            raise ValueError(f"{record.where} has {len(found)} endings, and {records[0].where} {count}")
    firsts = [text_of(record.values, columns[0], record.where) for record in records for _ in range(count)]
    where = [record.where for record in records for _ in range(count)]
    pairs = encoder.encode_pairs(firsts, [text for found in endings for text in found], where)
    return [pairs[start : start + count] for start in range(0, len(pairs), count)]


def _endings(record: Record, columns: Sequence[str]) -> list[str]:
    found = record.values[columns[1]] if len(columns) == 2 else [record.values[column] for column in columns[1:]]
    if not isinstance(found, list) or len(found) < 2 or not all(isinstance(text, str) and text for text in found):
        raise ValueError(f"{record.where}: the endings are {found!r}; give two or more texts, in columns or in a list")
    return found


def _right_ending(record: Record, column: str, count: int) -> int:
    name = class_name(record, column)
    if name not in map(str, range(count)):
        raise ValueError(f"{record.where}: the label is {name}, and there are {count} endings, counted from 0")
    return int(name)
