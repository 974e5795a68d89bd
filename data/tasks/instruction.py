"""Texts that follow a text, and chats: a causal language model learns the answers alone, the rest is only read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import Framer, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.records import Record, read_records

Part = tuple[str, bool]
"""A text, and whether it is to be learned."""


def read_generation(
    path: str, columns: Sequence[str], framer: Framer, prompt: str, labelled: bool
) -> tuple[list[Example], list[Record]]:
    """Records with an input and an output, or with one list of messages ({role, content}).

    The input stands in `prompt`. A chat is laid out as "ROLE: CONTENT" in lines, and what the assistant says is
    learned. An example ends with the tokenizer's end token, which is learned too; a long one loses its end.

    Args:
        columns: input and output, or messages.
        labelled: without, an example is only what comes before the (last) output.

    Raises:
        ValueError: a template without its slot, or a record that is not so.
    """
    if "{input}" not in prompt:
        raise ValueError(f"task.template is {prompt!r}; it must have the slot {{input}}")
    if len(columns) not in (1, 2):
        raise ValueError(f"task.text_columns names {len(columns)} columns; name input and output, or one of messages")
    records = read_records(path, columns if labelled else columns[:1])
    chats = len(columns) == 1
    parts_of = [
        chat_parts(record.values[columns[0]], record.where, labelled)
        if chats
        else [(prompt.replace("{input}", text_of(record.values, columns[0], record.where)), False)]
        + ([(text_of(record.values, columns[1], record.where), True)] if labelled else [])
        for record in records
    ]
    encoded = iter(framer.tokenizer.encode_batch([text for parts in parts_of for text, _ in parts]))
    examples = []
    for source, (record, parts) in enumerate(zip(records, parts_of, strict=True)):
        pieces = [(next(encoded), learned) for _, learned in parts]
        examples.append(_example(pieces, source, record.where, framer, labelled))
    return examples, records


def chat_parts(messages: object, where: str, labelled: bool) -> list[Part]:
    """The texts of a chat. Without labels what the assistant says last is left to say.

    Raises:
        ValueError: no list of {role, content}, or nothing that the assistant says.
    """
    well = isinstance(messages, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages
    )
    if not well or not messages:
        raise ValueError(f"{where}: the messages are {messages!r}; give a list of objects with role and content")
    if not labelled and messages[-1]["role"] == "assistant":
        messages = messages[:-1]
    parts: list[Part] = []
    for message in messages:
        learned = message["role"] == "assistant"
        parts += [(f"{message['role']}: ", False), (message["content"] + "\n", learned)]
    if not labelled:
        return [*parts, ("assistant: ", False)]
    if not any(learned for _, learned in parts):
        raise ValueError(f"{where}: no message is of the role 'assistant', so there is nothing to learn")
    return parts


def _example(pieces: list[tuple[list[int], bool]], source: int, where: str, framer: Framer, labelled: bool) -> Example:
    begin, end = framer.tokenizer.bos_id, framer.tokenizer.eos_id
    ids, learned = ([] if begin is None else [begin]), ([] if begin is None else [False])
    for piece, to_learn in pieces:
        ids += piece
        learned += [to_learn] * len(piece)
    if labelled and end is not None:
        ids, learned = [*ids, end], [*learned, True]
    ids = framer.cut(ids, framer.max_length, where)
    target = np.full(len(ids), IGNORE_INDEX)
    following = np.array(learned[1 : len(ids)], bool)
    target[:-1][following] = np.array(ids[1:])[following]
    count = int(following.sum())
    if labelled and not count:
        raise ValueError(
            f"{where}: nothing of the output is left within {framer.max_length} tokens; raise task.max_length"
        )
    if not labelled:
        target, count = np.full(len(ids), IGNORE_INDEX), 0
    return Example(np.array(ids), np.zeros(len(ids), np.int64), target, count, source, (len(ids),))
