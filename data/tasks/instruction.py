"""Instructions with an output, and chats: a causal language model learns the outputs, and only reads the rest."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import TextEncoder, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.chat import ASSISTANT, ChatEncoder, ChatIds, Messages
from ingot.data.tokenizers.tokenizer import Tokenizer

Part = tuple[str, bool]
"""A text, and whether the model learns it."""


def read_instruction(path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True) -> TaskData:
    """Records with an input and an output, or with one list of messages ({role, content}).

    The input stands in `settings.template`, and behind the output stands the tokenizer's end token, which is learned
    too. A chat is written by the tokenizer's chat template, and what the assistant says is learned, with the token that
    the template ends a turn with; a tokenizer without a template gets the default one. `settings.chat_template` can ask
    for the template also for inputs and outputs, or for plain lines "ROLE: CONTENT" instead.

    A long example loses its end. Without labels an example is what comes before the (last) output, and it is whole,
    however long. The target is int64 (tokens,), the next token, and -100 where it is not learned.

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
    read = _in_template if uses_chat_template(settings) else _in_lines
    examples = []
    for index, found in enumerate(read(records, settings, tokenizer, labelled)):
        if not labelled:
            examples += [_example(chat.ids, np.full(len(chat.ids), IGNORE_INDEX), index) for chat in found]
            continue
        targets = [_target(chat, records[index].where, encoder) for chat in found]
        kept = [_example(*each, index) for each in targets if (each[1] != IGNORE_INDEX).any()]
        if not kept:
            raise ValueError(
                f"{records[index].where}: nothing of the output is left within {encoder.max_length} tokens; raise "
                f"task.max_length"
            )
        examples += kept
    return TaskData(examples, records, settings, num_truncated=encoder.num_truncated)


def uses_chat_template(settings: TaskSettings) -> bool:
    """Whether the tokenizer's chat template writes the examples."""
    chats = len(settings.text_columns) == 1
    return settings.chat_template == "always" or (settings.chat_template == "auto" and chats)


def end_ids(settings: TaskSettings, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that end an output."""
    if not uses_chat_template(settings):
        return tokenizer.end_ids
    return ChatEncoder(tokenizer.with_chat_template()).end_ids


def reference(record: Record, columns: Sequence[str]) -> str:
    """The (last) output of a record, which a prediction is compared with.

    Raises:
        ValueError: there is none.
    """
    if len(columns) == 2:
        if columns[1] not in record.values:
            raise ValueError(f"{record.where}: no column {columns[1]!r}; a score needs the outputs")
        return text_of(record.values, columns[1], record.where)
    last = messages_of(record.values[columns[0]], record.where)[-1]
    if last["role"] != ASSISTANT:
        raise ValueError(
            f"{record.where}: the last message is of the role {last['role']!r}, and a score needs an answer"
        )
    return last["content"]


def _in_template(
    records: Sequence[Record], settings: TaskSettings, tokenizer: Tokenizer, labelled: bool
) -> Iterator[list[ChatIds]]:
    """Each record by the chat template."""
    encoder = ChatEncoder(tokenizer.with_chat_template())
    chats = [(_as_chat(record, settings, labelled), record.where) for record in records]
    if labelled:
        yield from encoder.whole(chats)
    else:
        yield from ([ChatIds(ids, np.zeros(len(ids), bool))] for ids in encoder.prompts(chats))


def _as_chat(record: Record, settings: TaskSettings, labelled: bool) -> Messages:
    columns = settings.text_columns
    if len(columns) == 1:
        messages = messages_of(record.values[columns[0]], record.where)
        return _with_answer(messages, record.where) if labelled else _question(messages)
    parts = _parts(record, settings, labelled)
    return [{"role": role, "content": text} for role, (text, _) in zip(("user", ASSISTANT), parts, strict=False)]


def _in_lines(
    records: Sequence[Record], settings: TaskSettings, tokenizer: Tokenizer, labelled: bool
) -> Iterator[list[ChatIds]]:
    """Each record as its parts one after the other, between the tokens that begin and end a text."""
    parts_of = [_parts(record, settings, labelled) for record in records]
    encoded = iter(tokenizer.encode_batch([text for parts in parts_of for text, _ in parts]))
    begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    end = [tokenizer.eos_id] if labelled and tokenizer.eos_id is not None else []
    for parts in parts_of:
        pieces = [(begin, False), *((next(encoded), learned) for _, learned in parts), (end, True)]
        learned = [to_learn for ids, to_learn in pieces for _ in ids]
        yield [ChatIds(np.array([i for ids, _ in pieces for i in ids], np.int64), np.array(learned, bool))]


def _parts(record: Record, settings: TaskSettings, labelled: bool) -> list[Part]:
    columns = settings.text_columns
    if len(columns) == 1:
        return _lines(messages_of(record.values[columns[0]], record.where), record.where, labelled)
    prompt = settings.template.replace("{input}", text_of(record.values, columns[0], record.where))
    output: list[Part] = [(text_of(record.values, columns[1], record.where), True)] if labelled else []
    return [(prompt, False), *output]


def _lines(messages: Messages, where: str, labelled: bool) -> list[Part]:
    """The texts of a chat. Without labels the last message of the assistant is left out."""
    messages = _with_answer(messages, where) if labelled else _question(messages)
    parts: list[Part] = []
    for message in messages:
        parts += [(f"{message['role']}: ", False), (message["content"] + "\n", message["role"] == ASSISTANT)]
    return parts if labelled else [*parts, (f"{ASSISTANT}: ", False)]


def _question(messages: Messages) -> Messages:
    """What comes before the last answer."""
    return messages[:-1] if messages[-1]["role"] == ASSISTANT else messages


def _with_answer(messages: Messages, where: str) -> Messages:
    if not any(message["role"] == ASSISTANT for message in messages):
        raise ValueError(f"{where}: no message is of the role 'assistant', so there is nothing to learn")
    return messages


def messages_of(value: Any, where: str) -> Messages:
    is_message = lambda one: isinstance(one, dict) and all(isinstance(one.get(k), str) for k in ("role", "content"))  # noqa: E731
    if not isinstance(value, list) or not value or not all(map(is_message, value)):
        raise ValueError(f"{where}: the messages are {value!r}; give a list of objects with role and content")
    return value


def _target(chat: ChatIds, where: str, encoder: TextEncoder) -> tuple[np.ndarray, np.ndarray]:
    """The ids that there is room for, and of each the next token where that is learned."""
    ids = np.array(encoder.truncate(chat.ids.tolist(), encoder.max_length, where))
    target = np.full(len(ids), IGNORE_INDEX)
    following = chat.learned[1 : len(ids)]
    target[:-1][following] = ids[1:][following]
    return ids, target


def _example(ids: np.ndarray, target: np.ndarray, index: int) -> Example:
    num_targets = int((target != IGNORE_INDEX).sum())
    return Example(ids, np.zeros(len(ids), np.int64), target, num_targets, index, (len(ids),))
