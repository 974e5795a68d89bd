"""Pairs of text segments: BERT's next-sentence prediction (NSP) and ALBERT's sentence-order prediction (SOP).

A row is `[CLS] A [SEP] B [SEP]` and then padding. Token types are 0 up to the first [SEP], then 1, and 0 in the
padding.

- NSP (Devlin et al. 2019, section 3.1): half of the time B is the text that follows A in its document (label 0). Else
  B comes from another document (label 1).
- SOP (Lan et al. 2020, section 3.1): B is the text that follows A (label 0). Half of the time the two are swapped
  (label 1).

A document is split into A and B where a sentence begins (sentences.py), or at a random word if no sentence is found. B
begins in the same way whether it follows A or not: the beginning of B must not tell the label.
"""

from __future__ import annotations

import numpy as np

from ingot.data.order.keyed_random import mix, uniform
from ingot.data.sequences.sentences import SentenceMarks

IGNORE_PAIR = -100  # label of a row whose documents are too short for a pair
KINDS = ("nsp", "sop")
_PARTNER, _PAIR = 24, 25  # numbers of random streams
_LABEL, _DOCUMENT_A, _SPLIT, _DOCUMENT_B, _OFFSET = range(5)  # draws of one pair


class SentencePairs:
    """Makes the pair of each slot: a pure function of (seed, slot) and the tokens of the instances."""

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
        partner_slots: int,
        marks: SentenceMarks | None = None,
    ):
        """
        Args:
            kind: nsp or sop.
            partner_slots: number of slots from which the partner of a slot is drawn. Slots are grouped into aligned
                blocks of this size, and the partner comes from the same block. The reader takes the number of instances
                of an epoch, or with window shuffle global batch / partitions, so that partners need no other shards.
            marks: with them segments begin with sentences and whole words.

        Raises:
            ValueError: an unknown kind, a tokenizer that lacks one of the tokens, or a sequence length below 5.
        """
        if kind not in KINDS:
            raise ValueError(f"sentence pairs of kind {kind!r} are unknown: choose nsp or sop")
        if cls_id is None or sep_id is None or pad_id is None:
            missing = [name for name, i in (("CLS", cls_id), ("SEP", sep_id), ("PAD", pad_id)) if i is None]
            raise ValueError(
                f"sentence pairs need begin, end and padding tokens, and the tokenizer has no {', '.join(missing)}: "
                f"set sentence_pairs to none, or use another tokenizer"
            )
        if sequence_length < 5:
            raise ValueError(f"a sentence pair needs a sequence_length of at least 5, it is {sequence_length}")
        assert partner_slots >= 1, partner_slots
        self.kind, self.sequence_length, self.seed = kind, sequence_length, seed
        self.partner_slots = partner_slots
        self.cls_id, self.sep_id, self.pad_id = cls_id, sep_id, pad_id
        self._is_special = np.zeros(vocab_size, dtype=bool)
        self._is_special[list(special_ids | {cls_id, sep_id, pad_id})] = True
        self._marks = marks

    def partner(self, slot: int, attempt: int = 0) -> int:
        """The slot of the second instance that `build_pair` needs; `slot` itself if it needs no second one.

        Each `attempt` gives another slot, in case the instance of the first one is damaged or of another corpus.
        Whether the result is `slot` itself does not depend on `attempt`.
        """
        if self.kind == "sop" or self.partner_slots == 1 or self._draws(slot)[_LABEL] >= 0.5:
            return slot
        size = self.partner_slots
        base = slot // size * size
        step = 1 + int(mix(self.seed, _PARTNER, slot, attempt)[0]) % (size - 1)
        return base + (slot - base + step) % size

    def build_pair(
        self, tokens_a: np.ndarray, starts_a: np.ndarray, tokens_b: np.ndarray, starts_b: np.ndarray, slot: int
    ) -> tuple[np.ndarray, np.ndarray, int, np.ndarray]:
        """(input_ids, token_types, pair_label, starts): int64 [L], int64 [L], int, bool [L].

        `tokens_a` and `starts_a` (bool, True where a document begins) are the instance of `slot`; `tokens_b` and
        `starts_b` are that of `partner(slot)`. The result `starts` is True where the pair begins and where the padding
        begins, which is a segment of its own.

        A is from a document of the row, drawn in proportion to its tokens. If there is no other document for B, B
        follows A. If no document has two tokens, the label is IGNORE_PAIR.
        """
        max_tokens = self.sequence_length - 3
        draws = self._draws(slot)
        documents = self._documents(tokens_a, starts_a)
        number = _draw(documents, draws[_DOCUMENT_A])
        document = documents[number][:max_tokens] if documents else np.empty(0, dtype=np.int64)
        if len(document) < 2:
            return *self._assemble(document, document[:0]), IGNORE_PAIR, self._starts(len(document) + 3)
        split, by_sentence = self._split(document, draws[_SPLIT])
        a, b, label = document[:split], document[split:], 0
        if draws[_LABEL] < 0.5:
            if self.kind == "sop":
                a, b, label = b, a, 1
            else:
                others = documents[:number] + documents[number + 1 :]
                if self.partner_slots > 1:
                    others = self._documents(tokens_b, starts_b)
                if others:
                    # As long as the text that it replaces: the length must not tell the label.
                    other = others[_draw(others, draws[_DOCUMENT_B])]
                    b, label = self._excerpt(other, len(b), by_sentence, draws[_OFFSET]), 1
        return *self._assemble(a, b), label, self._starts(len(a) + len(b) + 3)

    def _draws(self, slot: int) -> np.ndarray:
        return uniform(self.seed, _PAIR, slot, np.arange(5))

    def _documents(self, tokens: np.ndarray, starts: np.ndarray) -> list[np.ndarray]:
        """The parts of documents in the row, without special tokens and without empty ones."""
        inner = np.flatnonzero(starts)
        pieces = np.split(tokens, inner[inner > 0])
        pieces = [piece[~self._is_special[piece]] for piece in pieces]
        return [piece for piece in pieces if len(piece)]

    def _split(self, document: np.ndarray, draw: float) -> tuple[int, bool]:
        """Where B begins, in [1, len(document) - 1], and whether a sentence begins there.

        B begins with a sentence if one begins there, else with a word, else with any token."""
        if self._marks is not None:
            sentences = np.flatnonzero(self._marks.starts(document))
            if len(sentences):
                return _pick(sentences, draw), True
        return _pick(self._words(document, 1, len(document)), draw), False

    def _excerpt(self, document: np.ndarray, length: int, by_sentence: bool, draw: float) -> np.ndarray:
        """`length` consecutive tokens (or the whole document, if it is shorter) that begin with a random word.

        With `by_sentence` they begin with a random sentence; the document's beginning counts as one."""
        stop = max(1, len(document) - length + 1)
        if by_sentence:
            assert self._marks is not None
            begins = np.append(0, np.flatnonzero(self._marks.starts(document)[:stop]))
        else:
            begins = self._words(document, 0, stop)
        first = _pick(begins, draw)
        return document[first : first + length]

    def _words(self, document: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Where words begin in [first, stop); every position if no word begins there."""
        positions = np.arange(first, stop)
        if self._marks is None:
            return positions
        begins = positions[self._marks.is_word_start[document[positions]]]
        return begins if len(begins) else positions

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
    """The index of a random document, for `draw` in [0, 1): documents are drawn in proportion to their tokens.

    Documents of a single token are drawn only if there are no others. 0 if there are no documents."""
    lengths = np.array([len(document) for document in documents], dtype=np.int64)
    lengths[lengths < 2] = 0 if (lengths >= 2).any() else 1
    return int(np.searchsorted(np.cumsum(lengths), int(draw * lengths.sum()), side="right"))


def _pick(positions: np.ndarray, draw: float) -> int:
    return int(positions[int(draw * len(positions))])
