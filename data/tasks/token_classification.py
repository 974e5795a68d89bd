"""Words with a label each: on the first token of each word, in sentences that are cut at words where they are long.

Where asked, tokens of the document before and behind a sentence stand beside it, without labels: context.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.conll import TaggedSentence, read_conll, to_bio_counted
from ingot.data.tasks.encoding import Framer
from ingot.data.tasks.examples import Example
from ingot.data.tasks.labels import find_labels, number_of
from ingot.data.tasks.records import ENDINGS, Record, read_records


def read_words(
    path: str,
    columns: Sequence[str],
    places: tuple[int, int],
    labels: list[str] | None,
    framer: Framer,
    labelled: bool,
    context: int = 0,
) -> tuple[list[Example], list[TaggedSentence], list[str]]:
    """The sentences of a CoNLL file, or of records with a list of words and a list of labels.

    Labels of entities are brought to IOB2, whatever scheme the file has.

    Args:
        columns: of records: words and labels.
        places: of CoNLL: columns of the word and the label.
        context: most tokens on either side of a sentence that are taken from its document, as far as there is room.

    Returns:
        Examples, whose `places` are the word of each token that has a label, and -1; the sentences; the labels.
    """
    if Path(path).suffix.lower() in ENDINGS or Path(path).is_dir():
        wanted = columns if labelled else columns[:1]
        sentences = [_sentence(record, wanted, number) for number, record in enumerate(read_records(path, wanted))]
    else:
        word, label = places
        sentences = read_conll(path, word, label if labelled else None)
    if labelled:
        tags = [sentence.labels for sentence in sentences]
        if all(tag == "O" or tag[:2] in ("B-", "I-", "E-", "S-") for sentence in tags for tag in sentence):
            tags, framer.mended = to_bio_counted(tags)
        sentences = [TaggedSentence(s.words, t, s.where, s.document) for s, t in zip(sentences, tags, strict=True)]
        labels = labels or find_labels(tag for sentence in tags for tag in sentence)
    examples = []
    encoded = framer.tokenizer.encode_with_offsets([" ".join(sentence.words) for sentence in sentences])
    beside = _Context(sentences, [ids for ids, _ in encoded], context)
    for source, (sentence, (ids, offsets)) in enumerate(zip(sentences, encoded, strict=True)):
        word_of_token = _words_of(sentence.words, offsets)
        for begin, end in _windows(word_of_token, _room(framer)):
            if end - begin < len(ids):
                framer.truncated += begin == 0
            before = word_of_token[begin - 1] if begin else -1
            first = np.flatnonzero(np.diff(word_of_token[begin:end], prepend=before))  # of each word
            words = word_of_token[begin:end][first]
            tags = [number_of(sentence.labels[word], labels, sentence.where) for word in words] if labelled else []
            left, right = beside.of(source, begin, end, _room(framer))
            seen = np.concatenate((left, ids[begin:end], right))
            examples.append(_example(seen, len(left) + first, words, tags, source, framer))
    return examples, sentences, list(labels or [])


class _Context:
    """What stands in a document before and behind a part of one of its sentences.

    Args:
        ids: of each sentence.
        most: tokens on either side.
    """

    def __init__(self, sentences: Sequence[TaggedSentence], ids: Sequence[Sequence[int]], most: int):
        self.most, self.ids = most, np.concatenate([np.asarray(each, np.int64) for each in ids])
        self.starts = np.cumsum([0, *map(len, ids)])
        documents = np.array([sentence.document for sentence in sentences])
        self.first = self.starts[np.searchsorted(documents, documents)]  # of each sentence's document
        self.last = self.starts[np.searchsorted(documents, documents, side="right")]

    def of(self, sentence: int, begin: int, end: int, room: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids before and behind the sentence's tokens [begin, end), no more than `room` together with them; where there
        is too little room for both sides, half of it is for each."""
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
            raise ValueError(f"{record.where}: {column!r} is {value!r}, and no list of texts")
    if len({len(value) for value in lists}) > 1:
        raise ValueError(f"{record.where}: {len(lists[0])} words, and {len(lists[1])} labels")
    words = [str(word) for word in lists[0]]
    return TaggedSentence(words, [str(tag) for tag in lists[1]] if len(lists) > 1 else [], record.where, document)


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
    ids: np.ndarray, first: np.ndarray, words: np.ndarray, tags: list[int], source: int, framer: Framer
) -> Example:
    """
    Args:
        first: where in `ids` the first token of each word is.
        words: the number of each of these words in the sentence.
        tags: their labels; none without.
    """
    framed, types = framer.one.frame(ids)
    target, places = np.full(len(framed), IGNORE_INDEX), np.full(len(framed), -1)
    places[len(framer.one.before) + first] = words
    if tags:
        target[len(framer.one.before) + first] = tags
    return Example(framed, types, target, len(tags), source, (len(framed),), places)
