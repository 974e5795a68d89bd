"""Where sentences begin, estimated from tokens: at a new word after a full stop, question or exclamation mark.

A corpus does not store sentences. This estimate is good enough to split documents: no sentence begins inside "3.14" and
"self.x", because no word begins after the stop. After an abbreviation and a space one is found, wrongly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ingot.data.sequences.masking import byte_alphabet, detect_marks, word_starts

_ENDS = tuple(".!?\u2026\u3002\uff01\uff1f\uff0e")  # the last four: ideographic full stop, fullwidth ! ? .
_CLOSING = "\"')]}\u2019\u201d\u00bb\u300d\u300f\u300b\uff09\n\r\t"  # may stand between the stop and the next sentence


@dataclass(frozen=True)
class SentenceMarks:
    """Properties of the pieces of a vocabulary, each bool [vocabulary]."""

    is_word_start: np.ndarray
    is_end: np.ndarray  # the piece ends with a mark that ends a sentence
    is_closing: np.ndarray  # only quotes, brackets and line ends: it belongs to the sentence before

    def starts(self, tokens_T: np.ndarray) -> np.ndarray:
        """bool [T], True where a sentence begins. The first token is False: a sentence must have ended before."""
        position = np.arange(len(tokens_T))
        closing_T = self.is_closing[tokens_T]
        last_T = np.maximum.accumulate(np.where(closing_T, -1, position))  # the last piece that is not a closing one
        ended_T = (last_T >= 0) & self.is_end[tokens_T[last_T]]
        result = self.is_word_start[tokens_T] & ~closing_T
        result[1:] &= ended_T[:-1]
        result[:1] = False
        return result


def sentence_marks(pieces: Sequence[str]) -> SentenceMarks:
    """Raises ValueError as `masking.word_starts` does."""
    texts = _texts(pieces, detect_marks(pieces))
    is_end = np.array([text.rstrip(_CLOSING).endswith(_ENDS) for text in texts], dtype=bool)
    is_closing = np.array([bool(text) and not text.strip(_CLOSING) for text in texts], dtype=bool)
    return SentenceMarks(word_starts(pieces), is_end, is_closing)


def _texts(pieces: Sequence[str], kind: str) -> list[str]:
    if kind == "wordpiece":
        return [piece.removeprefix("##") for piece in pieces]
    if kind == "bytelevel":
        byte_of = byte_alphabet()
        return [bytes(byte_of.get(c, 0) for c in piece).decode(errors="ignore") for piece in pieces]
    return list(pieces)
