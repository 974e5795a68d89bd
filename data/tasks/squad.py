"""Questions about a paragraph whose answers are passages of it, as SQuAD has them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ingot.data.sources.text_files import parse_json, read_text


@dataclass(frozen=True)
class Question:
    """`answers` are (text, its first character in `context`), and none where the context has no answer. Of
    `num_stripped` of them white space around the text was left out."""

    id: str
    question: str
    context: str
    answers: list[tuple[str, int]]
    where: str
    num_stripped: int = 0


def strip_answers(answers: Sequence[tuple[str, int]]) -> tuple[list[tuple[str, int]], int]:
    """The answers without white space around them, which belongs to no token, and how many had any."""
    found = [(text.strip(), start + len(text) - len(text.lstrip())) for text, start in answers]
    return found, sum(text != new for (text, _), (new, _) in zip(answers, found, strict=True))


def read_squad(path: str | Path, labelled: bool = True) -> list[Question]:
    """The questions of a JSON file of SQuAD 1.1 (Rajpurkar et al. 2016) or 2.0 (Rajpurkar et al. 2018), in order.

    Questions with `is_impossible`, or an empty list of answers, have none. White space around an answer is left out. An
    answer whose text is not at its `answer_start` moves to the nearest position that has the text, of two equally near
    ones to the first.

    Args:
        labelled: whether to read answers; without, no question has any, and the file may lack them.

    Raises:
        ValueError: not UTF-8, empty or no JSON; something missing or of another type, an answer whose text is not in
            the context, or an id a second time, each with article, paragraph and question, counted from 1.
        OSError: a file that cannot be read.
    """
    root = parse_json(read_text(path), str(path))
    name, questions = Path(path).name, []
    seen: dict[str, str] = {}
    for location, context, entry in _entries(root, str(path)):
        name_of_it, asked = (_get(entry, key, str, location) for key in ("id", "question"))
        answers, num_stripped = _answers(entry, context, location) if labelled else ([], 0)
        question = Question(
            id=name_of_it,
            question=asked,
            context=context,
            answers=answers,
            where=name + location.removeprefix(str(path)),
            num_stripped=num_stripped,
        )
        if question.id in seen:
            raise ValueError(f"{location}: the id {question.id!r} is also that of {seen[question.id]}")
        seen[question.id] = question.where
        questions.append(question)
    if not questions:
        raise ValueError(f"{path} holds no questions")
    return questions


def _entries(root: Any, path: str) -> Iterator[tuple[str, str, Any]]:
    """Each question's location, context and JSON."""
    for a, article in enumerate(_get(root, "data", list, path), 1):
        for p, paragraph in enumerate(_get(article, "paragraphs", list, f"{path}, article {a}"), 1):
            location = f"{path}, article {a}, paragraph {p}"
            context = _get(paragraph, "context", str, location)
            for q, entry in enumerate(_get(paragraph, "qas", list, location), 1):
                yield f"{location}, question {q}", context, entry


def _answers(entry: dict, context: str, location: str) -> tuple[list[tuple[str, int]], int]:
    if "is_impossible" in entry and _get(entry, "is_impossible", bool, location):
        return [], 0
    given = []
    for number, answer in enumerate(_get(entry, "answers", list, location), 1):
        text = _get(answer, "text", str, f"{location}, answer {number}")
        start = _get(answer, "answer_start", int, f"{location}, answer {number}")
        if not text.strip():
            raise ValueError(f"{location}, answer {number} has no text; a question without an answer has no answers")
        given.append((text, start))
    stripped, num_stripped = strip_answers(given)
    answers = []
    for number, (text, start) in enumerate(stripped, 1):
        if start < 0 or not context.startswith(text, start):
            start = _nearest(context, text, start)
        if start < 0:
            raise ValueError(f"{location}, answer {number}: {text!r} is not in the context")
        answers.append((text, start))
    return answers, num_stripped


def _nearest(context: str, text: str, start: int) -> int:
    """The position of `text` in `context` nearest to `start`; -1 if there is none."""
    before = context.rfind(text, 0, max(start, 0) + len(text))
    after = context.find(text, max(start, 0))
    return before if after < 0 or (before >= 0 and start - before <= after - start) else after


def _get(value: Any, key: str, kind: type, location: str) -> Any:
    if not isinstance(value, dict):
        raise ValueError(f"{location} is a JSON {type(value).__name__}, not an object with {key!r}")
    if key not in value:
        raise ValueError(f"{location} has no {key!r}, only {', '.join(map(repr, value)) or 'nothing'}")
    if type(value[key]) is not kind:
        raise ValueError(f"{location}: {key!r} is {type(value[key]).__name__}, not {kind.__name__}")
    return value[key]
