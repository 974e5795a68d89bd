"""Pairs of text segments: BERT's next-sentence prediction (NSP) and ALBERT's sentence-order prediction (SOP).

A row is `[CLS] A [SEP] B [SEP]` and then padding; token types are 0 up to the first [SEP] and in the padding, 1 after.

- NSP (Devlin et al. 2019, section 3.1): half of the time B is what follows A in its document, label 0; else it comes
  from another document, label 1.
- SOP (Lan et al. 2020, section 3.1): B is what follows A, label 0; half of the time the two are swapped, label 1.

Segments are runs of tokens, cut where a sentence ends (sentences.py) or, in text without such a place, at a random
word. B begins in the same way whether it follows A or not, so that its beginning does not give the label away.
"""

from __future__ import annotations

import numpy as np

from ingot.data.order.keyed_random import mix, uniform
from ingot.data.sequences.sentences import SentenceMarks

IGNORE_PAIR = -100  # label of a row whose text is too short for a pair
KINDS = ("nsp", "sop")
_PARTNER, _PAIR = 24, 25  # streams of random numbers of their own
_LABEL, _DOCUMENT_A, _CUT, _DOCUMENT_B, _OFFSET = range(5)


class SentencePairs:
    """Makes a pair of each slot; a pure function of (seed, slot) and the tokens of the instances."""

    def __init__(
        self,
        *,
        kind: str,
        sequence_length: int,
        cls_id: int | None,
        sep_id: int | None,
        pad_id: int | None,
        special_ids: frozenset[int],
        vocab_size: int,
        seed: int,
        block: int,
        marks: SentenceMarks | None = None,
    ):
        """`block`: partners are drawn among this many slots, those of the aligned block that a slot lies in: the
        number of instances of an epoch, or global batch / partitions where shards are far away.

        `marks` lets segments begin with sentences and whole words.

        Raises ValueError for an unknown kind, a tokenizer without the tokens, or too short a row.
        """
        if kind not in KINDS:
            raise ValueError(f"pairs of kind {kind!r} are unknown: choose nsp or sop")
        missing = [name for name, i in (("CLS", cls_id), ("SEP", sep_id), ("PAD", pad_id)) if i is None]
        if missing:
            raise ValueError(
                f"sentence pairs need begin, end and padding tokens, and the tokenizer has no {', '.join(missing)}: "
                f"use objective mlm without pairs, or another tokenizer"
            )
        if sequence_length < 5:
            raise ValueError(f"a pair takes at least 5 tokens, sequence_length is {sequence_length}")
        assert block >= 1, block
        self.kind, self.sequence_length, self.seed, self.block = kind, sequence_length, seed, block
        self.cls_id, self.sep_id, self.pad_id = cls_id, sep_id, pad_id
        self._is_special = np.zeros(vocab_size, dtype=bool)
        self._is_special[sorted(special_ids | {cls_id, sep_id, pad_id})] = True
        self._marks = marks

    def partner(self, slot: int, attempt: int = 0) -> int:
        """The slot whose instance `build_pair` needs beside that of `slot`; `slot` itself where it needs no other.

        Other `attempt`s name other slots, for when the first one's instance will not do: it is damaged, or of another
        corpus. Whether it is `slot` itself does not depend on `attempt`.
        """
        if self.kind == "sop" or self.block == 1 or self._draws(slot)[_LABEL] >= 0.5:
            return slot
        base = slot // self.block * self.block
        step = 1 + int(mix(self.seed, _PARTNER, slot, attempt)[0]) % (self.block - 1)
        return base + (slot - base + step) % self.block

    def build_pair(
        self, tokens_a: np.ndarray, starts_a: np.ndarray, tokens_b: np.ndarray, starts_b: np.ndarray, slot: int
    ) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """(input_ids, token_types, pair_label, starts): int64 [L], int64 [L], int, bool [L].

        `tokens_a` and `starts_a` (bool, True where a document begins) are the instance of `slot`, the others that of
        `partner(slot)`. `starts` is True at the pair's begin and at that of the padding, a segment of its own.

        A is from a document of the row drawn in proportion to tokens. Where there is no other document for B, B
        follows A; where no document has two tokens, the label is IGNORE_PAIR.
        """
        room = self.sequence_length - 3
        draws = self._draws(slot)
        documents = self._documents(tokens_a, starts_a)
        number = _draw(documents, draws[_DOCUMENT_A])
        document = documents[number][:room] if documents else np.empty(0, dtype=np.int64)
        if len(document) < 2:
            return *self._assemble(document, document[:0]), IGNORE_PAIR, self._starts(len(document) + 3)
        cut, by_sentence = self._cut(document, draws[_CUT])
        a, b, label = document[:cut], document[cut:], 0
        if draws[_LABEL] < 0.5:
            if self.kind == "sop":
                a, b, label = b, a, 1
            else:
                others = documents[:number] + documents[number + 1 :]
                if self.block > 1:
                    others = self._documents(tokens_b, starts_b)
                if others:
                    # As long as what it stands in for, so that lengths do not give the label away.
                    other = others[_draw(others, draws[_DOCUMENT_B])]
                    b, label = self._excerpt(other, len(b), by_sentence, draws[_OFFSET]), 1
        return *self._assemble(a, b), label, self._starts(len(a) + len(b) + 3)

    def _draws(self, slot: int) -> np.ndarray:
        return uniform(self.seed, _PAIR, slot, np.arange(5))

    def _documents(self, tokens: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
        """The row's pieces of documents without special tokens, those that are empty left out."""
        inner = np.flatnonzero(starts)
        pieces = np.split(tokens, inner[inner > 0])
        pieces = [piece[~self._is_special[piece]] for piece in pieces]
        return [piece for piece in pieces if len(piece)]

    def _cut(self, document: np.ndarray, draw: float) -> tuple[int, bool]:
        """Where B begins, in [1, len(document) - 1], and whether that is a sentence: at one where there is one, else at
        a word, else anywhere."""
        if self._marks is not None:
            sentences = np.flatnonzero(self._marks.starts(document))
            if len(sentences):
                return _pick(sentences, draw), True
        return _pick(self._words(document, 1, len(document)), draw), False

    def _excerpt(self, document: np.ndarray, length: int, by_sentence: bool, draw: float) -> np.ndarray:
        """`length` consecutive tokens, or all there are, from a random word on, or from a sentence on, of which the
        document's beginning is one."""
        stop = max(1, len(document) - length + 1)
        if by_sentence:
            places = np.append(0, np.flatnonzero(self._marks.starts(document)[:stop]))
        else:
            places = self._words(document, 0, stop)
        first = _pick(places, draw)
        return document[first : first + length]

    def _words(self, document: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Where words begin in [first, stop), or all of it where none does."""
        places = np.arange(first, stop)
        begins = places[self._marks.is_word_start[document[places]]] if self._marks is not None else places
        return begins if len(begins) else places

    def _assemble(self, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        input_ids = np.full(self.sequence_length, self.pad_id, dtype=np.int64)
        token_types = np.zeros(self.sequence_length, dtype=np.int64)
        pair = np.concatenate([[self.cls_id], a, [self.sep_id], b, [self.sep_id]])
        input_ids[: len(pair)] = pair
        token_types[len(a) + 2 : len(pair)] = 1
        return input_ids, token_types

    def _starts(self, length: int) -> np.ndarray:
        starts = np.zeros(self.sequence_length, dtype=bool)
        starts[0] = True
        starts[length : length + 1] = True
        return starts


def _draw(documents: list[np.ndarray], draw: float) -> int:
    """The number of a document, in proportion to its tokens, for `draw` in [0, 1); those of a single token only if
    there are no others. 0 where there are none."""
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    lengths[lengths < 2] = 0 if (lengths >= 2).any() else 1
    return int(np.searchsorted(np.cumsum(lengths), int(draw * lengths.sum()), side="right"))


def _pick(places: np.ndarray, draw: float) -> int:
    return int(places[int(draw * len(places))])
