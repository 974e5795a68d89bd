"""Words with a label each: on the first token of each word, in sentences that are cut at words where they are long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.conll import TaggedSentence, read_conll, to_bio_counted
from data.objectives import IGNORE_INDEX
from data.task_examples import Example
from data.task_files import ENDINGS, Record, read_records
from data.task_framing import Framer
from data.task_labels import find_labels, number_of


def read_words(
    path: str,
    columns: Sequence[str],
    places: tuple[int, int],
    labels: list[str] | None,
    framer: Framer,
    labelled: bool,
) -> tuple[list[Example], list[TaggedSentence], list[str]]:
    """The sentences of a CoNLL file, or of records with a list of words and a list of labels.

    Labels of entities are brought to IOB2, whatever scheme the file has.

    Args:
        columns: of records: words and labels.
        places: of CoNLL: columns of the word and the label.

    Returns:
        Examples, whose `places` are the word of each token that has a label, and -1; the sentences; the labels.
    """
    if Path(path).suffix.lower() in ENDINGS or Path(path).is_dir():
        wanted = columns if labelled else columns[:1]
        sentences = [_sentence(record, wanted) for record in read_records(path, wanted)]
    else:
        sentences = read_conll(path, *places)
    if labelled:
        tags = [sentence.labels for sentence in sentences]
        if all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for sentence in tags for tag in sentence):
            tags, framer.mended = to_bio_counted(tags)
        sentences = [TaggedSentence(s.words, t, s.where, s.document) for s, t in zip(sentences, tags, strict=True)]
        labels = labels or find_labels(tag for sentence in tags for tag in sentence)
    examples = []
    texts = [" ".join(sentence.words) for sentence in sentences]
    for source, (sentence, (ids, offsets)) in enumerate(
        zip(sentences, framer.tokenizer.encode_with_offsets(texts), strict=True)
    ):
        word_of_token = _words_of(sentence.words, offsets)
        for begin, end in _windows(word_of_token, _room(framer)):
            if end - begin < len(ids):
                framer.truncated += begin == 0
            before = word_of_token[begin - 1] if begin else -1
            first = np.flatnonzero(np.diff(word_of_token[begin:end], prepend=before))  # of each word
            words = word_of_token[begin:end][first]
            tags = [number_of(sentence.labels[word], labels, sentence.where) for word in words] if labelled else []
            examples.append(_example(ids[begin:end], first, words, tags, source, framer))
    return examples, sentences, list(labels or [])


def _sentence(record: Record, columns: Sequence[str]) -> TaggedSentence:
    lists: list[Any] = [record.values[column] for column in columns]
    for column, value in zip(columns, lists, strict=True):
        if not isinstance(value, list) or not value or not all(isinstance(item, str | int) for item in value):
            raise ValueError(f"{record.where}: {column!r} is {value!r}, and no list of texts")
    if len({len(value) for value in lists}) > 1:
        raise ValueError(f"{record.where}: {len(lists[0])} words, and {len(lists[1])} labels")
    words = [str(word) for word in lists[0]]
    return TaggedSentence(words, [str(tag) for tag in lists[1]] if len(lists) > 1 else [], record.where, 0)


def _words_of(words: Sequence[str], offsets: np.ndarray) -> np.ndarray:
    """The word of each token of the words with spaces between."""
    ends = np.cumsum([len(word) + 1 for word in words])
    last = np.maximum(offsets[:, 1] - 1, offsets[:, 0])  # a space before a word may be its token's first character
    return np.searchsorted(ends, last, side="right")


def _room(framer: Framer) -> int:
    return framer.max_length - len(framer.one.before) - len(framer.one.after)


def _windows(word_of_token: np.ndarray, room: int) -> list[tuple[int, int]]:
    """Runs of at most `room` tokens that begin where a word does; a word of more tokens is cut."""
    windows, begin, count = [], 0, len(word_of_token)
    while begin < count or not windows:
        end = min(begin + room, count)
        if end < count:
            starts = np.flatnonzero(np.diff(word_of_token[begin : end + 1])) + 1
            end = begin + int(starts[-1]) if len(starts) else end
        windows.append((begin, end))
        begin = end
    return windows


def _example(
    ids: list[int], first: np.ndarray, words: np.ndarray, tags: list[int], source: int, framer: Framer
) -> Example:
    """
    Args:
        first: the first token of each word in `ids`.
        words: the number of each of these words in the sentence.
        tags: their labels; none without.
    """
    framed, types = framer.one.frame(ids)
    target, places = np.full(len(framed), IGNORE_INDEX), np.full(len(framed), -1)
    places[len(framer.one.before) + first] = words
    if tags:
        target[len(framer.one.before) + first] = tags
    return Example(framed, types, target, len(tags), source, (len(framed),), places)
