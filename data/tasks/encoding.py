"""Texts and pairs of a task as token ids between a tokenizer's special tokens, truncated to what the model can read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.data.tasks.records import Record
from ingot.data.tasks.task_data import TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer


class TextEncoder:
    """Encodes texts and pairs with special tokens, and counts those that it truncates.

    Args:
        settings: `max_length` is the most tokens of an example, special ones included. With `refuse_overlong` a longer
            one is an error; otherwise its end is dropped, of a pair that of the longer text.
    """

    def __init__(self, tokenizer: Tokenizer, settings: TaskSettings):
        self.tokenizer, self.max_length = tokenizer, settings.max_length
        self.refuse_overlong = settings.refuse_overlong
        self.single, self.pair = tokenizer.template(pair=False), tokenizer.template(pair=True)
        self.num_truncated = 0

    @property
    def single_room(self) -> int:
        """Most tokens of a single text, without special ones."""
        return self.max_length - len(self.single.before) - len(self.single.after)

    @property
    def pair_room(self) -> int:
        """Most tokens of both texts of a pair together, without special ones."""
        return self.max_length - len(self.pair.before) - len(self.pair.between) - len(self.pair.after)

    def encode(self, texts: Sequence[str], where: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types of each text, int64 [tokens]. `where` names each text in messages.

        Raises:
            ValueError: a text is too long, and `refuse_overlong` is set.
        """
        encoded = self.tokenizer.encode_batch(texts)
        return [
            self.single.apply(self.truncate(ids, self.single_room, location))
            for ids, location in zip(encoded, where, strict=True)
        ]

    def encode_pairs(
        self, first: Sequence[str], second: Sequence[str], where: Sequence[str]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Ids and token types of each pair, int64 [tokens].

        Raises:
            ValueError: a pair is too long, and `refuse_overlong` is set.
        """
        both = self.tokenizer.encode_batch([*first, *second])
        pairs = zip(both[: len(first)], both[len(first) :], where, strict=True)
        return [self.pair.apply(*self.truncate_pair(one, two, location)) for one, two, location in pairs]

    def truncate_pair(self, one: list[int], two: list[int], where: str) -> tuple[list[int], list[int]]:
        """As `longest_first` in transformers' fast tokenizers: the longer text loses its end. Where the shorter text
        has more than half of the room, both lose theirs."""
        room = self.pair_room
        if len(one) + len(two) <= room:
            return one, two
        self._count(len(one) + len(two), room, where)
        shorter = min(len(one), len(two))
        if 2 * shorter > room:
            shorter = room // 2
        longer = room - shorter
        return (one[:longer], two[:shorter]) if len(one) > len(two) else (one[:shorter], two[:longer])

    def truncate(self, ids: list[int], room: int, where: str) -> list[int]:
        """The first `room` ids."""
        if len(ids) > room:
            self._count(len(ids), room, where)
        return ids[:room]

    def _count(self, length: int, room: int, where: str) -> None:
        if self.refuse_overlong:
            raise ValueError(
                f"{where} has {length} tokens, and there is room for {room}; raise task.max_length, shorten the text, "
                f"or set task.overlong to truncate"
            )
        self.num_truncated += 1


def encode_records(
    records: Sequence[Record], columns: Sequence[str], encoder: TextEncoder
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Ids and token types of each record's text, or of its pair of texts.

    Raises:
        ValueError: neither one nor two columns, or a record without a text.
    """
    where = [record.where for record in records]
    texts = [[text_of(record.values, column, record.where) for record in records] for column in columns]
    if len(columns) == 1:
        return encoder.encode(texts[0], where)
    if len(columns) == 2:
        return encoder.encode_pairs(texts[0], texts[1], where)
    raise ValueError(f"task.text_columns names {len(columns)} columns; name one, or two for pairs")


def text_of(values: dict, column: str, where: str) -> str:
    """The text in a column.

    Raises:
        ValueError: the value is empty or not a text.
    """
    value = values[column]
    if not isinstance(value, str):
        raise ValueError(f"{where}: {column!r} is {value!r}, which is not a text")
    if not value.strip():
        raise ValueError(f"{where}: {column!r} is empty; fill it in or remove the row")
    return value
