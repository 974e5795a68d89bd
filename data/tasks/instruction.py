"""Instructions with an output, and chats: a causal language model learns the outputs, and only reads the rest."""

from __future__ import annotations

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import TextEncoder, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer

Part = tuple[str, bool]
"""A text, and whether the model learns it."""


def read_instruction(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """Records with an input and an output, or with one list of messages ({role, content}).

    The input stands in `settings.template`. A chat is written as lines "ROLE: CONTENT", and what the assistant says is
    learned. An example ends with the tokenizer's end token, which is learned too; a long one loses its end. Without
    labels an example is only what comes before the (last) output. The target is int64 (tokens,), the next token, and
    -100 where it is not learned.

    `text_columns` are input and output, or messages. See `ReadTask`.

    Raises:
        ValueError: a template without {input}, or a record of another form.
    """
    columns, encoder = settings.text_columns, TextEncoder(tokenizer, settings)
    if "{input}" not in settings.template:
        raise ValueError(f"task.template is {settings.template!r}; it must have the slot {{input}}")
    if len(columns) not in (1, 2):
        raise ValueError(f"task.text_columns names {len(columns)} columns; name input and output, or one of messages")
    records = read_records(path, columns if labelled else columns[:1])
    parts_of = [_parts(record, settings, labelled) for record in records]
    encoded = iter(tokenizer.encode_batch([text for parts in parts_of for text, _ in parts]))
    examples = []
    for index, (record, parts) in enumerate(zip(records, parts_of, strict=True)):
        pieces = [(next(encoded), learned) for _, learned in parts]
        examples.append(_example(pieces, index, record.where, encoder, labelled))
    return TaskData(examples, records, settings, num_truncated=encoder.num_truncated)


def _parts(record: Record, settings: TaskSettings, labelled: bool) -> list[Part]:
    columns = settings.text_columns
    if len(columns) == 1:
        return chat_parts(record.values[columns[0]], record.where, labelled)
    prompt = settings.template.replace("{input}", text_of(record.values, columns[0], record.where))
    output: list[Part] = [(text_of(record.values, columns[1], record.where), True)] if labelled else []
    return [(prompt, False), *output]


def chat_parts(messages: object, where: str, labelled: bool) -> list[Part]:
    """The texts of a chat. Without labels the last message of the assistant is left out.

    Raises:
        ValueError: not a list of {role, content}, or no message of the assistant.
    """
    if not isinstance(messages, list) or not messages or not all(map(_is_message, messages)):
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


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("role", "content"))


def _example(
    pieces: list[tuple[list[int], bool]], index: int, where: str, encoder: TextEncoder, labelled: bool
) -> Example:
    begin, end = encoder.tokenizer.bos_id, encoder.tokenizer.eos_id
    ids, learned = ([] if begin is None else [begin]), ([] if begin is None else [False])
    for piece, to_learn in pieces:
        ids += piece
        learned += [to_learn] * len(piece)
    if labelled and end is not None:
        ids, learned = [*ids, end], [*learned, True]
    ids = encoder.truncate(ids, encoder.max_length, where)
    target = np.full(len(ids), IGNORE_INDEX)
    following = np.array(learned[1 : len(ids)], bool)
    target[:-1][following] = np.array(ids[1:])[following]
    count = int(following.sum())
    if labelled and not count:
        raise ValueError(
            f"{where}: nothing of the output is left within {encoder.max_length} tokens; raise task.max_length"
        )
    if not labelled:
        target, count = np.full(len(ids), IGNORE_INDEX), 0
    return Example(np.array(ids), np.zeros(len(ids), np.int64), target, count, index, (len(ids),))
