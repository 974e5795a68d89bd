"""A label for each word: on the word's first token. Long sentences are split between words.

On request, tokens of the document before and after a sentence are added to it, without labels: its context.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.conll import TaggedSentence, read_conll, to_bio_counted
from ingot.data.tasks.encoding import TextEncoder
from ingot.data.tasks.examples import Example
from ingot.data.tasks.labels import find_labels, number_of, rename_labels
from ingot.data.tasks.records import ENDINGS, Record, read_records
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer


def read_token_classification(
    path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True
) -> TaskData:
    """The sentences of a CoNLL file, or of records with a list of words and a list of labels.

    Labels of entities are converted to IOB2, whatever scheme the file has. The target of an example is int64 (tokens,):
    the label's index on the first token of each word, and -100 elsewhere. Its `alignment` is the word of each token
    that has a label.

    `text_columns` is, of records, the column of the words. See `ReadTask`.
    """
    sentences = _read_sentences(path, settings, labelled)
    encoder, labels, num_repaired = TextEncoder(tokenizer, settings), settings.labels or [], 0
    if labelled:
        given = find_labels(label for sentence in sentences for label in sentence.labels)
        names = settings.label_names
        if settings.labels is None:
            rename_labels(given, names)  # what is wrong with the names
        sentences, num_repaired = _in_iob2(
            [replace(each, labels=[names.get(label, label) for label in each.labels]) for each in sentences]
        )
        used = {label for sentence in sentences for label in sentence.labels}
        # Labels keep the order that they have in the file, such as that of their numbers, and new ones come behind.
        kept = [name for name in (names.get(label, label) for label in given) if name in used] if names else []
        labels = labels or [*kept, *find_labels(used - {*kept})]
    examples: list[Example] = []
    encoded = tokenizer.encode_with_offsets([" ".join(sentence.words) for sentence in sentences])
    context = _Context(sentences, [ids for ids, _ in encoded], settings.document_context)
    num_truncated = 0
    for index, (sentence, (ids, offsets)) in enumerate(zip(sentences, encoded, strict=True)):
        word_of_token = _words_of(sentence.words, offsets)
        windows = _windows(word_of_token, encoder.single_room)
        num_truncated += len(windows) > 1
        for begin, end in windows:
            before = word_of_token[begin - 1] if begin else -1
            first = np.flatnonzero(np.diff(word_of_token[begin:end], prepend=before))  # of each word
            words = word_of_token[begin:end][first]
            targets = [number_of(sentence.labels[word], labels, sentence.where) for word in words] if labelled else []
            left, right = context.around(index, begin, end, encoder.single_room)
            with_context = np.concatenate((left, ids[begin:end], right))
            examples.append(_example(with_context, len(left) + first, words, targets, index, encoder))
    return TaskData(examples, sentences, settings, list(labels), num_truncated, num_repaired)


def _read_sentences(path: str, settings: TaskSettings, labelled: bool) -> list[TaggedSentence]:
    if Path(path).suffix.lower() in ENDINGS or Path(path).is_dir():
        columns = [settings.text_columns[0], *([settings.label_column] if labelled else [])]
        return [_sentence(record, columns, number) for number, record in enumerate(read_records(path, columns))]
    return read_conll(path, settings.conll_word_column, settings.conll_label_column if labelled else None)


def _in_iob2(sentences: Sequence[TaggedSentence]) -> tuple[list[TaggedSentence], int]:
    """The sentences with labels of entities in IOB2, other labels as they are; and how many labels I- that continue
    nothing became B-."""
    labels, num_repaired = [sentence.labels for sentence in sentences], 0
    if all(label == "O" or label[:2] in ("B-", "I-", "E-", "S-") for each in labels for label in each):
        labels, num_repaired = to_bio_counted(labels)
    return [replace(one, labels=new) for one, new in zip(sentences, labels, strict=True)], num_repaired


class _Context:
    """The tokens of a document before and after a part of one of its sentences.

    Args:
        ids: of each sentence.
        most: most tokens on either side.
    """

    def __init__(self, sentences: Sequence[TaggedSentence], ids: Sequence[Sequence[int]], most: int):
        self.most, self.ids = most, np.concatenate([np.asarray(each, np.int64) for each in ids])
        self.starts = np.cumsum([0, *map(len, ids)])
        documents = np.array([sentence.document for sentence in sentences])
        self.first = self.starts[np.searchsorted(documents, documents)]  # of each sentence's document
        self.last = self.starts[np.searchsorted(documents, documents, side="right")]

    def around(self, sentence: int, begin: int, end: int, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids before and after the sentence's tokens [begin, end), together with them no more than `room`. Where the
        room is too small for both sides, each gets half of it."""
        begin, end = self.starts[sentence] + begin, self.starts[sentence] + end
        left, right = min(self.most, begin - self.first[sentence]), min(self.most, self.last[sentence] - end)
        spare = room - (end - begin)
        left = min(left, max(spare // 2, spare - right))
        right = min(right, spare - left)
        return self.ids[begin - left : begin], self.ids[end : end + right]


def _sentence(record: Record, columns: Sequence[str], document: int) -> TaggedSentence:
    lists: list[Any] = [record.values[column] for column in columns]
    for column, value in zip(columns, lists, strict=True):
        if not isinstance(value, list) or not value or not all(isinstance(item, str | int) for item in value):
            raise ValueError(f"{record.where}: {column!r} is {value!r}, which is not a list of texts")
    if len({len(value) for value in lists}) > 1:
        raise ValueError(f"{record.where}: {len(lists[0])} words, and {len(lists[1])} labels")
    words = [str(word) for word in lists[0]]
    return TaggedSentence(words, [str(tag) for tag in lists[1]] if len(lists) > 1 else [], record.where, document)


def _words_of(words: Sequence[str], offsets: np.ndarray) -> np.ndarray:
    """The word of each token of the words with spaces between."""
    ends = np.cumsum([len(word) + 1 for word in words])
    last = np.maximum(offsets[:, 1] - 1, offsets[:, 0])  # a space before a word may be its token's first character
    return np.searchsorted(ends, last, side="right")


def _windows(word_of_token: np.ndarray, room: int) -> list[tuple[int, int]]:
    """Begin and end of runs of at most `room` tokens that begin where a word does; a word of more tokens is split."""
    windows: list[tuple[int, int]] = []
    begin, count = 0, len(word_of_token)
    while begin < count or not windows:
        end = min(begin + room, count)
        if end < count:
            starts = np.flatnonzero(np.diff(word_of_token[begin : end + 1])) + 1
            end = begin + int(starts[-1]) if len(starts) else end
        windows.append((begin, end))
        begin = end
    return windows


def _example(
    ids: np.ndarray, first: np.ndarray, words: np.ndarray, targets: list[int], index: int, encoder: TextEncoder
) -> Example:
    """
    Args:
        first: the index in `ids` of the first token of each word.
        words: the index of each of these words in the sentence.
        targets: their labels; none without.
    """
    framed, types = encoder.single.apply(ids.tolist())
    target, alignment = np.full(len(framed), IGNORE_INDEX), np.full(len(framed), -1)
    alignment[len(encoder.single.before) + first] = words
    if targets:
        target[len(encoder.single.before) + first] = targets
    return Example(framed, types, target, len(targets), index, (len(framed),), alignment)
