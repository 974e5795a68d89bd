"""Sliding windows over documents that may be longer than the model: the windows overlap, and each token is scored once.

Windows of several documents are packed into rows, as in training, so that short documents need no padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel
from ingot.data.sequences.packing import describe_rows


@dataclass(frozen=True)
class Window:
    """Tokens of a document, and for each the token to predict there; IGNORE_INDEX if it is only context."""

    input_ids: np.ndarray
    labels: np.ndarray


def sliding_windows(tokens: np.ndarray, length: int, stride: int) -> Iterator[Window]:
    """The windows of a document for next-token prediction. A new window starts every `stride` tokens.

    Each token but the first is a target exactly once. It is predicted from all tokens before it, or, in a long
    document, from at least `length - stride` and at most `length` of them.
    """
    scored = 0  # index of the last token that was a target
    for begin in range(0, max(0, len(tokens) - 1), stride):
        end = min(begin + length, len(tokens) - 1)
        labels = tokens[begin + 1 : end + 1].astype(np.int64)
        labels[: scored - begin] = IGNORE_INDEX
        yield Window(tokens[begin:end].astype(np.int64), labels)
        scored = end
        if end == len(tokens) - 1:
            return


def disjoint_windows(tokens: np.ndarray, length: int) -> Iterator[Window]:
    """A document split into windows of `length` tokens that do not overlap; they have no labels yet."""
    for begin in range(0, len(tokens), length):
        part = tokens[begin : begin + length].astype(np.int64)
        yield Window(part, np.full(len(part), IGNORE_INDEX, dtype=np.int64))


def micro_batches(
    windows: Iterable[Window], length: int, num_rows: int, pad_id: int, masks: MaskedLanguageModel | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Packs windows into rows, and rows into micro-batches like those of data/loader/reader.py.

    A window that does not fit into the current row starts the next one.

    Args:
        length: tokens of a row.
        num_rows: most rows of a micro-batch.
        pad_id: fills the end of a row; with `masks` it must be a special token.
        masks: masks the tokens and makes the labels of masked prediction. Row n of all rows is its slot n.

    Returns:
        Micro-batches with input_ids, labels and positions of shape (rows, length), and cu_seqlens.
    """
    rows: list[list[Window]] = []
    first = room = 0
    for window in windows:
        if len(window.input_ids) > room:
            if len(rows) == num_rows:
                yield _micro_batch(rows, length, pad_id, masks, first)
                first, rows = first + len(rows), []
            rows.append([])
            room = length
        rows[-1].append(window)
        room -= len(window.input_ids)
    if rows:
        yield _micro_batch(rows, length, pad_id, masks, first)


def _micro_batch(
    rows: list[list[Window]], length: int, pad_id: int, masks: MaskedLanguageModel | None, first: int
) -> dict[str, np.ndarray]:
    input_ids = np.full((len(rows), length), pad_id, dtype=np.int64)
    labels = np.full((len(rows), length), IGNORE_INDEX, dtype=np.int64)
    for row, windows in enumerate(rows):
        begin = 0
        for window in windows:
            end = begin + len(window.input_ids)
            input_ids[row, begin:end], labels[row, begin:end] = window.input_ids, window.labels
            begin = end
    starts, positions, cu_seqlens = describe_rows([[len(w.input_ids) for w in row] for row in rows], length)
    if masks is not None:
        input_ids, labels = masks(input_ids, first + np.arange(len(rows)), starts)
    return {"input_ids": input_ids, "labels": labels, "positions": positions, "cu_seqlens": cu_seqlens}
