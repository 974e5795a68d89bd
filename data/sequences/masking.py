"""Which tokens masked prediction chooses: single tokens, whole words, or spans of words.

The budget is round(probability * ordinary tokens). Single tokens meet it exactly; words and spans differ from it by
less than one word. Words are found from the tokenizer's word marks (`word_starts`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from ingot.data.order.keyed_random import uniform

UNITS = ("token", "word", "span")
MARKS = ("wordpiece", "sentencepiece", "bytelevel")

# SpanBERT (Joshi et al. 2020, section 3.1): span lengths in words, geometric, at most 10.
SPAN_P, MAX_SPAN = 0.2, 10
MAX_WORD = 16  # tokens; a longer run without word marks, such as base64, counts as several words

_LENGTH = 22  # number of a random stream

# Characters of scripts without spaces between words (Han, kana).
_UNSPACED = re.compile("[\u2e80-\u2fdf\u3005-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")


def word_starts(pieces: Sequence[str], kind: str | None = None) -> np.ndarray:
    """bool [vocabulary]: True for each piece that begins a word.

    A piece that begins with a character of a script without spaces (Han, kana) begins a word of its own.

    Args:
        kind: how the tokenizer marks words: "wordpiece" (## continues a word), "sentencepiece" (a leading U+2581 begins
            one), or "bytelevel" (a leading space or newline, spelled as in byte-level BPE, begins one). None: detected
            from the pieces.

    Raises:
        ValueError: an unknown kind, or a vocabulary without word marks.
    """
    kind = kind or detect_marks(pieces)
    if kind == "wordpiece":
        return np.array([not piece.startswith("##") for piece in pieces], dtype=bool)
    if kind == "sentencepiece":
        begins = ("\u2581", "\n", "\t")
        return np.array([piece.startswith(begins) or bool(_UNSPACED.match(piece)) for piece in pieces], dtype=bool)
    if kind == "bytelevel":
        byte_of = byte_alphabet()
        return np.array([_begins_bytelevel(piece, byte_of) for piece in pieces], dtype=bool)
    raise ValueError(f"word marks {kind!r} are unknown: choose one of {', '.join(MARKS)}")


def detect_marks(pieces: Sequence[str]) -> str:
    """The kind of word marks that the pieces have. Raises ValueError if they have none."""
    counts = {
        "wordpiece": sum(piece.startswith("##") and len(piece) > 2 for piece in pieces),
        "sentencepiece": sum(piece.startswith("\u2581") for piece in pieces),
        "bytelevel": sum(piece.startswith("\u0120") for piece in pieces),
    }
    kind = max(counts, key=counts.__getitem__)
    if not counts[kind]:
        raise ValueError(
            "no piece of the vocabulary marks where words begin (## of WordPiece, U+2581 of SentencePiece, U+0120 of "
            "byte-level BPE): set mask_unit to token and sentence_pairs to none, or use another tokenizer"
        )
    return kind


def byte_alphabet() -> dict[str, int]:
    """Character -> byte of byte-level BPE (GPT-2): printable Latin-1 is itself, the other bytes are 256 onwards."""
    printable = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or b >= 174]
    others = [b for b in range(256) if b not in set(printable)]
    return {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}


def _begins_bytelevel(piece: str, byte_of: dict[str, int]) -> bool:
    try:
        text = bytes(byte_of[character] for character in piece).decode(errors="ignore")
    except KeyError:  # a special token is not spelled in this alphabet
        return True
    first = text[:1]
    return bool(first) and (first.isspace() or bool(_UNSPACED.match(first)))


def row_word_starts(
    tokens_T: np.ndarray, ordinary_T: np.ndarray, starts_T: np.ndarray, is_word_start: np.ndarray
) -> np.ndarray:
    """Where words begin in a row: bool [T], True only at ordinary tokens.

    A word also begins at the start of the row and of a document (`starts_T`), after a special token, and after 16
    tokens without a word start.
    """
    after = np.ones_like(ordinary_T)
    after[1:] = ~ordinary_T[:-1]
    begins = ordinary_T & (is_word_start[tokens_T] | after | starts_T)
    position = np.arange(len(tokens_T))
    within = position - np.maximum.accumulate(np.where(begins, position, 0))
    return begins | (ordinary_T & (within > 0) & (within % MAX_WORD == 0))


def choose_words(score_W: np.ndarray, length_W: np.ndarray, budget: int) -> np.ndarray:
    """Indices of the words with the smallest scores whose total is nearest to `budget` tokens; at least one word."""
    order = np.argsort(score_W, kind="stable")
    total = np.cumsum(length_W[order])
    number = int(np.searchsorted(total, budget))  # the first that reaches the budget
    if number and total[number] - budget > budget - total[number - 1]:
        number -= 1
    return order[: number + 1]


def choose_spans(
    score_W: np.ndarray, length_W: np.ndarray, joined_W: np.ndarray, span_W: np.ndarray, budget: int
) -> list[tuple[int, int]]:
    """Spans (first word, word after the last) that do not overlap, of about `budget` tokens together.

    Words begin spans in the order of their scores. The span from word w has span_W[w] words. It has fewer if it meets
    another span, a word that does not directly follow (`joined_W` False), or the end of the budget.
    """
    sizes, joined, taken = length_W.tolist(), joined_W.tolist(), [False] * len(score_W)
    spans: list[tuple[int, int]] = []
    left = budget
    for first in np.argsort(score_W, kind="stable").tolist():
        stop = min(first + int(span_W[first]), len(sizes))
        word = first
        while word < stop and not taken[word] and (word == first or joined[word]) and left > 0:
            if sizes[word] - left > left and left < budget:  # nearer to the budget without it
                left = 0
                break
            taken[word] = True
            left -= sizes[word]
            word += 1
        if word > first:
            spans.append((first, word))
        if left <= 0:
            break
    return spans


def span_lengths(seed: int, slot: int, position_W: np.ndarray) -> np.ndarray:
    """Words of a span that begins at each position: geometric with p = 0.2, truncated to 1 to 10 and normalized."""
    probabilities = SPAN_P * (1 - SPAN_P) ** np.arange(MAX_SPAN)
    edges = np.cumsum(probabilities / probabilities.sum())[:-1]
    return 1 + np.searchsorted(edges, uniform(seed, _LENGTH, slot, position_W), side="right")
