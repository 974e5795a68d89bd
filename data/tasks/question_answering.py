"""Questions whose answer is a passage of a paragraph, in windows where the paragraph is long."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ingot.data.tasks.encoding import Framer, text_of
from ingot.data.tasks.examples import Example
from ingot.data.tasks.records import Record, read_records
from ingot.data.tasks.squad import Question, read_squad


def read_answers(
    path: str, columns: Sequence[str], framer: Framer, stride: int, labelled: bool
) -> tuple[list[Example], list[Question]]:
    """The questions of a JSON file of SQuAD, or of records with the columns question, context and, as in `datasets`,
    id and answers.

    Each window of the paragraph is an example; its target are the first and last token of the first answer, counted
    from the example's first token, and (0, 0) where the window has no answer in whole (Devlin et al. 2019).

    Args:
        columns: of records: question and context.
        stride: tokens by which one window overlaps the one before.

    Returns:
        Examples, whose `places` are for each token of the paragraph its first character and the one behind its last,
        and -1 for others; the questions.

    Raises:
        ValueError: no room for a paragraph beside a question.
    """
    if Path(path).suffix.lower() == ".json":
        questions = read_squad(path, labelled)
    else:
        names = list(columns) or ["question", "context"]
        questions = [_question(r, names, labelled) for r in read_records(path, [*names, *(["answers"] * labelled)])]
    contexts = list(dict.fromkeys(question.context for question in questions))
    encoded = dict(zip(contexts, framer.tokenizer.encode_with_offsets(contexts), strict=True))
    asked = framer.tokenizer.encode_batch([question.question.strip() for question in questions])
    template, examples = framer.two, []
    frame = len(template.before) + len(template.between) + len(template.after)
    for source, (question, ids) in enumerate(zip(questions, asked, strict=True)):
        room = framer.max_length - frame - len(ids)
        if room <= stride:
            raise ValueError(
                f"{question.where}: the question has {len(ids)} tokens, which leaves {room} for the paragraph; "
                f"task.doc_stride is {stride}: raise task.max_length ({framer.max_length}) or lower task.doc_stride"
            )
        context, offsets = encoded[question.context]
        framer.truncated += len(context) > room
        start = 0
        while True:
            end = min(start + room, len(context))
            part = context[start:end]
            framed, types = template.frame(ids, part)
            before = len(template.before) + len(ids) + len(template.between)
            places = np.full((len(framed), 2), -1)
            places[before : before + len(part)] = offsets[start:end]
            target = np.array(_span(question, offsets[start:end], before) if labelled else (-100, -100))
            examples.append(Example(framed, types, target, int(labelled), source, (len(framed),), places))
            if end == len(context):
                break
            start = end - stride
    return examples, questions


def _question(record: Record, names: Sequence[str], labelled: bool) -> Question:
    question, context = (text_of(record.values, name, record.where) for name in names)
    answers = []
    if labelled:
        given = record.values["answers"]
        try:
            answers = list(zip(map(str, given["text"]), map(int, given["answer_start"]), strict=True))
        except (TypeError, KeyError, ValueError):
            raise ValueError(
                f"{record.where}: 'answers' is {given!r}; it must be an object with lists text and answer_start"
            ) from None
        for text, start in answers:
            if not text or not context.startswith(text, start):
                raise ValueError(f"{record.where}: the answer {text!r} is not at character {start} of the context")
    return Question(str(record.values.get("id", record.where)), question, context, answers, record.where)


def _span(question: Question, offsets: np.ndarray, before: int) -> tuple[int, int]:
    if not question.answers:
        return 0, 0
    text, start = question.answers[0]
    inside = np.flatnonzero((offsets[:, 1] > start) & (offsets[:, 0] < start + len(text)))
    if not len(inside) or offsets[inside[0], 0] > start or offsets[inside[-1], 1] < start + len(text):
        return 0, 0
    return before + int(inside[0]), before + int(inside[-1])
