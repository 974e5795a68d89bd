"""Downstream tasks: from a file to examples, kind by kind.

classification  one label of a set for a text or pair        label: class
multi_label     any number of labels of a set                label: 0 or 1 for each
regression      numbers                                      label: numbers
choice          which of several endings follows a text      label: class
tagging         a label for each word                        data/tasks/token_classification.py
answers         a passage of a paragraph                     data/tasks/question_answering.py
generation      a text that follows a text, or a chat        data/tasks/instruction.py
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import Framer, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.instruction import read_generation
from ingot.data.tasks.labels import class_name, find_labels, label_names, number, number_of
from ingot.data.tasks.question_answering import read_answers
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.token_classification import read_words
from ingot.data.tokenizers.tokenizer import Tokenizer

Kind = Literal["classification", "multi_label", "regression", "choice", "tagging", "answers", "generation"]


@dataclass
class TaskSettings:
    """How a file is read.

    Attributes:
        texts: columns of the text, or of the two texts of a pair. choice: of the text, then of each ending, or of one
            list of endings. tagging: of the words, in files that are no CoNLL. answers: question, context. generation:
            of the input and the output, or of one list of messages.
        label: column of the label; regression may have several, with commas between.
        labels: the set of labels; None finds them in the file.
        word_column, label_column: of CoNLL files.
        max_length: most tokens of an example.
        refuse: whether longer ones are refused, instead of cut.
        stride: tokens by which the windows of a long paragraph overlap.
        context: most tokens of its document that tagging shows on either side of a sentence.
        prompt: of generation, a text with {input} where the input goes.
    """

    kind: Kind
    texts: list[str]
    label: str = "label"
    labels: list[str] | None = None
    word_column: int = 0
    label_column: int = -1
    max_length: int = 512
    refuse: bool = False
    stride: int = 128
    context: int = 0
    prompt: str = "{input}"


@dataclass
class TaskData:
    """The examples of a file.

    Attributes:
        sources: what the examples are of, by `Example.source`: records, sentences, questions.
        labels: the set of labels; empty for tasks without one.
        truncated: examples that were cut to max_length.
        mended: labels I- that continue nothing, in a file of IOB2 or IOB1, and are read as the beginning of an entity.
    """

    examples: list[Example]
    sources: list[Any]
    labels: list[str] = field(default_factory=list)
    truncated: int = 0
    mended: int = 0


def read_task(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """The examples of a file; the formats are those of `read_records`, CoNLL columns and SQuAD's JSON.

    Args:
        labelled: whether to read labels; without, examples have no target.

    Raises:
        ValueError, OSError: what is wrong in the file, with the line.
    """
    framer = Framer(tokenizer, settings.max_length, settings.refuse)
    if settings.kind == "tagging":
        columns = [settings.texts[0] if settings.texts else "words", settings.label]
        places = settings.word_column, settings.label_column
        found = read_words(path, columns, places, settings.labels, framer, labelled, settings.context)
        return TaskData(*found, truncated=framer.truncated, mended=framer.mended)
    if settings.kind == "answers":
        examples, questions = read_answers(path, settings.texts, framer, settings.stride, labelled)
        return TaskData(examples, questions, truncated=framer.truncated)
    if settings.kind == "generation":
        examples, records = read_generation(path, settings.texts, framer, settings.prompt, labelled)
        return TaskData(examples, records, truncated=framer.truncated)
    label_columns = settings.label.split(",") if settings.kind == "regression" else [settings.label]
    records = read_records(path, [*settings.texts, *(label_columns if labelled else ())])
    if settings.kind == "choice":
        framed, labels = _choices(records, settings.texts, framer), []
        targets = [
            np.array(_chosen(record, settings.label, len(documents)) if labelled else IGNORE_INDEX)
            for record, (_, _, documents) in zip(records, framed, strict=True)
        ]
    else:
        framed = [(ids, types, (len(ids),)) for ids, types in _framed(records, settings.texts, framer)]
        targets, labels = _targets(records, settings, label_columns, labelled)
    examples = [
        Example(ids, types, target, int(labelled), source, documents)
        for source, ((ids, types, documents), target) in enumerate(zip(framed, targets, strict=True))
    ]
    return TaskData(examples, records, labels, framer.truncated)


def _targets(
    records: list[Record], settings: TaskSettings, label_columns: list[str], labelled: bool
) -> tuple[list[np.ndarray], list[str]]:
    kind, labels = settings.kind, settings.labels
    if kind == "regression":
        labels = label_columns
        read = lambda r: np.array([number(r, column) for column in label_columns])  # noqa: E731
        blank: Any = np.full(len(label_columns), np.nan)
    elif kind == "multi_label":
        if labels is None:
            labels = find_labels(name for record in records for name in label_names(record, settings.label))
        blank = np.full(len(labels), np.nan)

        def read(record: Record) -> np.ndarray:
            target = np.zeros(len(labels))
            for name in label_names(record, settings.label):
                target[number_of(name, labels, record.where)] = 1
            return target
    else:
        if labels is None and labelled:
            labels = find_labels(class_name(record, settings.label) for record in records)
        blank = np.array(IGNORE_INDEX)
        read = lambda r: np.array(number_of(class_name(r, settings.label), labels, r.where))  # noqa: E731
    return [read(record) if labelled else blank for record in records], list(labels or [])


def _framed(records: list[Record], columns: Sequence[str], framer: Framer) -> list[tuple[np.ndarray, np.ndarray]]:
    where = [record.where for record in records]
    texts = [[text_of(record.values, column, record.where) for record in records] for column in columns]
    if len(columns) == 1:
        return framer.texts(texts[0], where)
    if len(columns) == 2:
        return framer.pairs(texts[0], texts[1], where)
    raise ValueError(f"task.text_columns names {len(columns)} columns; name one, or two for pairs")


def _chosen(record: Record, column: str, count: int) -> int:
    """The number of the right ending."""
    name = class_name(record, column)
    if name not in map(str, range(count)):
        raise ValueError(f"{record.where}: the label is {name}, and there are {count} endings, counted from 0")
    return int(name)


def _choices(
    records: list[Record], columns: Sequence[str], framer: Framer
) -> list[tuple[np.ndarray, np.ndarray, tuple[int, ...]]]:
    """Each record as one document for each ending."""
    endings = []
    for record in records:
        found = record.values[columns[1]] if len(columns) == 2 else [record.values[column] for column in columns[1:]]
        if not isinstance(found, list) or len(found) < 2 or not all(isinstance(text, str) and text for text in found):
            raise ValueError(f"{record.where}: the endings are {found!r}; give two or more texts, in columns or a list")
        if endings and len(found) != len(endings[0]):
            raise ValueError(f"{record.where} has {len(found)} endings, and {records[0].where} {len(endings[0])}")
        endings.append(found)
    count = len(endings[0])
    firsts = [text_of(record.values, columns[0], record.where) for record in records for _ in range(count)]
    where = [record.where for record in records for _ in range(count)]
    pairs = framer.pairs(firsts, [text for found in endings for text in found], where)
    framed = []
    for start in range(0, len(pairs), count):
        parts = pairs[start : start + count]
        ids, types = (np.concatenate(side) for side in zip(*parts, strict=True))
        framed.append((ids, types, tuple(len(part[0]) for part in parts)))
    return framed
