"""Documents that may be longer than the model: overlapping windows, in which each token is scored once.

Windows of several documents are laid side by side in rows, as in training, so that short documents cost no padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX, MaskedLanguageModel
from ingot.data.sequences.packing import describe_rows


@dataclass(frozen=True)
class Window:
    """Input tokens of a document, and for each the token to predict from it: IGNORE_INDEX where it is context only."""

    input_ids: np.ndarray
    labels: np.ndarray


def windows_of(tokens: np.ndarray, length: int, stride: int) -> Iterator[Window]:
    """The windows of a document for next-token prediction: one every `stride` tokens.

    Each token but the first is a target once. It is predicted from all tokens before it, or from at least
    `length - stride` and at most `length` of them.
    """
    scored = 0  # the last token that was a target
    for begin in range(0, max(0, len(tokens) - 1), stride):
        end = min(begin + length, len(tokens) - 1)
        labels = tokens[begin + 1 : end + 1].astype(np.int64)
        labels[: scored - begin] = IGNORE_INDEX
        yield Window(tokens[begin:end].astype(np.int64), labels)
        scored = end
        if end == len(tokens) - 1:
            return


def blocks_of(tokens: np.ndarray, length: int) -> Iterator[Window]:
    """A document cut into parts of `length` tokens, the labels to be made later."""
    for begin in range(0, len(tokens), length):
        part = tokens[begin : begin + length].astype(np.int64)
        yield Window(part, np.full(len(part), IGNORE_INDEX, dtype=np.int64))


def micro_batches(
    windows: Iterable[Window], length: int, num_rows: int, pad_id: int, masks: MaskedLanguageModel | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """Windows in rows of `length` tokens, each behind the one before where it fits, and at most `num_rows` rows at a
    time, as data.reader.Reader makes them.

    Args:
        pad_id: fills rows up; with `masks` a special token.
        masks: of masked prediction, which makes the labels; row number n of all is its slot n.
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
