"""Texts and pairs of a task as ids between a tokenizer's special tokens, no longer than the model can read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.data.tokenizers.tokenizer import Tokenizer


class Framer:
    """Encodes and frames texts, and counts what it had to cut; `mended` is for labels that a reader had to change.

    Args:
        max_length: most tokens of an example, special ones included.
        refuse: whether a longer one is an error; otherwise its end is cut off, of a pair that of the longer text.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, refuse: bool = False):
        self.tokenizer, self.max_length, self.refuse = tokenizer, max_length, refuse
        self.one, self.two = tokenizer.template(pair=False), tokenizer.template(pair=True)
        self.truncated = self.mended = 0

    def texts(self, texts: Sequence[str], where: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types of each text, int64."""
        room = self.max_length - len(self.one.before) - len(self.one.after)
        encoded = self.tokenizer.encode_batch(texts)
        return [self.one.frame(self.cut(ids, room, place)) for ids, place in zip(encoded, where, strict=True)]

    def pairs(
        self, first: Sequence[str], second: Sequence[str], where: Sequence[str]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types of each pair, int64."""
        both = self.tokenizer.encode_batch([*first, *second])
        framed = []
        for one, two, place in zip(both[: len(first)], both[len(first) :], where, strict=True):
            framed.append(self.two.frame(*self.cut_pair(one, two, place)))
        return framed

    def cut_pair(self, one: list[int], two: list[int], where: str) -> tuple[list[int], list[int]]:
        """As `longest_first` in transformers' fast tokenizers: the longer one loses its end; where half the room is too
        small for the shorter one, both do."""
        room = self.max_length - len(self.two.before) - len(self.two.between) - len(self.two.after)
        if len(one) + len(two) <= room:
            return one, two
        self._count(len(one) + len(two), room, where)
        shorter = min(len(one), len(two))
        if 2 * shorter > room:
            shorter = room // 2
        longer = room - shorter
        return (one[:longer], two[:shorter]) if len(one) > len(two) else (one[:shorter], two[:longer])

    def cut(self, ids: list[int], room: int, where: str) -> list[int]:
        if len(ids) > room:
            self._count(len(ids), room, where)
        return ids[:room]

    def _count(self, length: int, room: int, where: str) -> None:
        if self.refuse:
            raise ValueError(
                f"{where} has {length} tokens, and there is room for {room}; raise task.max_length, shorten it, or set "
                f"task.overlong to truncate"
            )
        self.truncated += 1


def text_of(values: dict, column: str, where: str) -> str:
    """A text that is there.

    Raises:
        ValueError: it is empty or no text.
    """
    value = values[column]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column!r} is {value!r}, and no text")
    if not value.strip():
        raise ValueError(f"{where}: {column!r} is empty; fill it in or remove the row")
    return value
