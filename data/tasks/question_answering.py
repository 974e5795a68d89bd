"""Questions whose answer is a passage of a paragraph, in windows where the paragraph is long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ingot.data.sequences.objectives import IGNORE_INDEX
from ingot.data.tasks.encoding import TextEncoder, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.squad import Question, read_squad, strip_answers
from ingot.data.tasks.task_data import TaskData, TaskSettings
from ingot.data.tokenizers.tokenizer import Tokenizer

ANSWERS = "answers"
"""Column of records, as `datasets` has it for SQuAD: an object with lists `text` and `answer_start`."""


def read_question_answering(
    path: str, settings: TaskSettings, tokenizer: Tokenizer, *, labelled: bool = True
) -> TaskData:
    """The questions of a JSON file of SQuAD, or of records with the columns question, context and, as in `datasets`,
    id and answers.

    Each window of the paragraph is an example, which overlaps the one before by `doc_stride` tokens. Its target, int64
    (2,), is the first and last token of the first answer, counted from the example's first token, and (0, 0) where the
    window does not hold the whole answer (Devlin et al. 2019, arXiv 1810.04805). The windows of a question whose answer
    none holds have no target: they would teach that there is none. Its `alignment` is, for each token of the paragraph,
    its first character and the one after its last.

    `text_columns` are, of records, question and context. See `ReadTask`.

    Raises:
        ValueError: a question leaves no room for its paragraph; or, where each must have an answer, has none.
    """
    encoder = TextEncoder(tokenizer, settings)
    questions = _read_questions(path, settings.text_columns, labelled)
    contexts = list(dict.fromkeys(question.context for question in questions))
    encoded = dict(zip(contexts, tokenizer.encode_with_offsets(contexts), strict=True))
    asked = tokenizer.encode_batch([question.question.strip() for question in questions])
    template, num_truncated, num_lost = encoder.pair, 0, 0
    examples: list[Example] = []
    for index, (question, ids) in enumerate(zip(questions, asked, strict=True)):
        if labelled and not question.answers and not settings.no_answer:
            raise ValueError(
                f"{question.where}: the question has no answer, and task.no_answer is false; set it to true, or leave "
                f"the question out"
            )
        room = encoder.pair_room - len(ids)
        if room <= settings.doc_stride:
            raise ValueError(
                f"{question.where}: the question has {len(ids)} tokens, which leaves {room} for the paragraph; "
                f"task.doc_stride is {settings.doc_stride}: raise task.max_length ({settings.max_length}) or lower "
                f"task.doc_stride"
            )
        context, offsets = encoded[question.context]
        num_truncated += len(context) > room
        before = len(template.before) + len(ids) + len(template.between)
        windows: list[Example] = []
        for start, end in _windows(len(context), room, settings.doc_stride):
            framed, types = template.apply(ids, context[start:end])
            alignment = np.full((len(framed), 2), -1)
            alignment[before : before + end - start] = offsets[start:end]
            target = _span(question, offsets[start:end], before) if labelled else (IGNORE_INDEX, IGNORE_INDEX)
            windows.append(Example(framed, types, np.array(target), int(labelled), index, (len(framed),), alignment))
        if question.answers and not any(window.target.any() for window in windows):
            num_lost += 1
            windows = [window.without_target() for window in windows]
        examples += windows
    return TaskData(
        examples,
        questions,
        settings,
        num_truncated=num_truncated,
        num_stripped_answers=sum(question.num_stripped for question in questions),
        num_lost_answers=num_lost,
    )


def _read_questions(path: str, columns: Sequence[str], labelled: bool) -> list[Question]:
    if Path(path).suffix.lower() == ".json":
        return read_squad(path, labelled)
    needed = [*columns, ANSWERS] if labelled else columns
    return [_question(record, columns, labelled) for record in read_records(path, needed)]


def _windows(length: int, room: int, stride: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each window of at most `room` tokens; it overlaps the one before by `stride`."""
    start = 0
    while start + room < length:
        yield start, start + room
        start += room - stride
    yield start, length


def _question(record: Record, names: Sequence[str], labelled: bool) -> Question:
    question, context = (text_of(record.values, name, record.where) for name in names)
    answers, num_stripped = [], 0
    if labelled:
        given = record.values[ANSWERS]
        try:
            answers = list(zip(map(str, given["text"]), map(int, given["answer_start"]), strict=True))
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                f"{record.where}: {ANSWERS!r} is {given!r}; it must be an object with lists text and answer_start"
            ) from None
        answers, num_stripped = strip_answers(answers)
        for text, start in answers:
            if not text or not context.startswith(text, start):
                raise ValueError(f"{record.where}: the answer {text!r} is not at character {start} of the context")
    return Question(str(record.values.get("id", record.where)), question, context, answers, record.where, num_stripped)


def _span(question: Question, offsets: np.ndarray, before: int) -> tuple[int, int]:
    if not question.answers:
        return 0, 0
    text, start = question.answers[0]
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < start + len(text):
        return 0, 0
    return before + int(inside[0]), before + int(inside[-1])
