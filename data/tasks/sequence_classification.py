"""Labels of whole texts or pairs: one class, any number of labels, or numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import TextEncoder, encode_records
from ingot.data.tasks.examples import Example
from ingot.data.tasks.labels import class_name, find_labels, label_names, number, number_of, rename_labels
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer


def read_classification(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """One label of a set for each text: the target is the label's index, int64 (). See `ReadTask`."""
    column, labels = settings.label_column, settings.labels
    data = _read_texts(path, settings, tokenizer, [column] if labelled else [])
    if not labelled:
        return _with_targets(data, np.array(IGNORE_INDEX), labels or [])
    found, names = [class_name(record, column) for record in data.records], settings.label_names
    labels = rename_labels(find_labels(found) if labels is None else labels, names)
    pairs = zip(found, data.records, strict=True)
    targets = [np.array(number_of(names.get(label, label), labels, record.where)) for label, record in pairs]
    return _with_targets(data, targets, labels)


def read_multi_label(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """Any number of labels of a set for each text: the target is 1 for each label that the text has and 0 for the
    others, float64 (labels,). See `ReadTask`."""
    column, labels = settings.label_column, settings.labels
    data = _read_texts(path, settings, tokenizer, [column] if labelled else [])
    if not labelled:
        return _with_targets(data, np.full(len(labels or []), np.nan), labels or [])
    if labels is None:
        labels = find_labels(name for record in data.records for name in label_names(record, column))
    labels = rename_labels(labels, settings.label_names)
    targets = [_indicators(record, column, labels, settings.label_names) for record in data.records]
    return _with_targets(data, targets, labels)


def read_regression(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """One number or several for each text: the target is float64 (numbers,), and the labels are the names of the
    columns. See `ReadTask`."""
    columns = settings.label_column.split(",")
    data = _read_texts(path, settings, tokenizer, columns if labelled else [])
    if not labelled:
        return _with_targets(data, np.full(len(columns), np.nan), columns)
    targets = [np.array([number(record, column) for column in columns]) for record in data.records]
    return _with_targets(data, targets, columns)


def _read_texts(path: str, settings: TaskSettings, tokenizer: Tokenizer, label_columns: Sequence[str]) -> TaskData:
    """The examples without targets; each record has `label_columns`."""
    encoder = TextEncoder(tokenizer, settings)
    records = read_records(path, [*settings.text_columns, *label_columns])
    encoded = encode_records(records, settings.text_columns, encoder)
    examples = [
        Example(ids, types, np.array(IGNORE_INDEX), 0, index, (len(ids),)) for index, (ids, types) in enumerate(encoded)
    ]
    return TaskData(examples, records, settings, num_truncated=encoder.num_truncated)


def _with_targets(data: TaskData, targets: list[np.ndarray] | np.ndarray, labels: list[str]) -> TaskData:
    """The examples with a target each, or, given one array, with that one and no loss."""
    if isinstance(targets, np.ndarray):
        examples = [replace(example, target=targets) for example in data.examples]
    else:
        pairs = zip(data.examples, targets, strict=True)
        examples = [replace(example, target=target, num_targets=1) for example, target in pairs]
    return replace(data, examples=examples, labels=list(labels))


def _indicators(record: Record, column: str, labels: Sequence[str], names: Mapping[str, str]) -> np.ndarray:
    target = np.zeros(len(labels))
    for label in label_names(record, column):
        target[number_of(names.get(label, label), labels, record.where)] = 1
    return target
