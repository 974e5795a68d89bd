"""Questions come with the passages that answer them; what is missing or wrong is said with its place."""

import copy
import json
import lzma
import os
from pathlib import Path

import pytest

from ingot.data.tasks.squad import Question, read_squad

ROOT = Path(__file__).resolve().parents[3]
CONTEXT = "Mira saw a heron. The heron was grey, as herons are. \U0001f426 Grüße!"
FILE = {
    "version": "v2.0",
    "data": [
        {"title": "Empty", "paragraphs": []},
        {
            "title": "Herons",
            "paragraphs": [
                {"context": "Nothing.", "qas": []},
                {
                    "context": CONTEXT,
                    "qas": [
                        {
                            "id": "q1",
                            "question": "Who saw a heron?",
                            "is_impossible": False,
                            "answers": [{"text": "Mira", "answer_start": 0}, {"text": "Mira", "answer_start": 0}],
                        },
                        {
                            "id": "q2",
                            "question": "Who saw a stork?",
                            "is_impossible": True,
                            "answers": [],
                            "plausible_answers": [{"text": "Mira", "answer_start": 0}],
                        },
                        {"id": "q3", "question": "Said?", "answers": [{"text": "Grüße!", "answer_start": 55}]},
                        {"id": "q4", "question": "Unknown?", "answers": []},
                        {"id": "q5", "question": "None?", "is_impossible": True},
                    ],
                },
            ],
        },
    ],
}


def read(tmp_path, value):
    (tmp_path / "a.json").write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    return read_squad(tmp_path / "a.json")


def test_questions_with_and_without_answers(tmp_path):
    place = "a.json, article 2, paragraph 2, question"
    expected = [
        Question("q1", "Who saw a heron?", CONTEXT, [("Mira", 0), ("Mira", 0)], f"{place} 1"),
        Question("q2", "Who saw a stork?", CONTEXT, [], f"{place} 2"),
        Question("q3", "Said?", CONTEXT, [("Grüße!", 55)], f"{place} 3"),
        Question("q4", "Unknown?", CONTEXT, [], f"{place} 4"),
        Question("q5", "None?", CONTEXT, [], f"{place} 5"),
    ]
    assert read(tmp_path, FILE) == expected
    assert read(tmp_path, "\ufeff" + json.dumps(FILE, ensure_ascii=False, indent=1).replace("\n", "\r\n")) == expected
    assert CONTEXT[55:61] == "Grüße!"


def one_answer(text, start, context=CONTEXT):
    answers = [{"text": text, "answer_start": start}]
    return {"data": [{"paragraphs": [{"context": context, "qas": [{"id": "1", "question": "?", "answers": answers}]}]}]}


@pytest.mark.parametrize(
    ("text", "given", "found"),
    [
        ("heron", 11, 11),
        ("heron", 10, 11),
        ("heron", 12, 11),
        ("heron", 16, 11),  # 11 is as near as 22 is not
        ("heron", 17, 22),
        ("heron", 39, 41),  # inside "herons"
        ("heron", 500, 41),
        ("heron", -1, 11),
        ("Mira", 3, 0),
        ("Mira", -4, 0),
        ("!", -1, 60),  # what a slice from the end would have found
    ],
)
def test_an_answer_moves_to_the_nearest_place(tmp_path, text, given, found):
    assert read(tmp_path, one_answer(text, given))[0].answers == [(text, found)]


def test_nearest_of_every_start(tmp_path):
    context = "aaXaaaaXa"
    places = [i for i in range(len(context)) if context.startswith("aa", i)]
    for given in range(-3, 14):
        [(_, start)] = read(tmp_path, one_answer("aa", given, context))[0].answers
        assert start == min(places, key=lambda place: (abs(place - given), place))


QUESTION = ("data", 1, "paragraphs", 1, "qas", 0)
IN_QUESTION = "a.json, article 2, paragraph 2, question 1"


@pytest.mark.parametrize(
    ("keys", "value", "reason"),
    [
        (("data",), None, "a.json has no 'data', only 'version'"),
        (("data",), {}, "a.json: 'data' is dict, not list"),
        (("data",), [], "a.json holds no questions"),
        (("data", 1), "x", "a.json, article 2 is a JSON str, not an object with 'paragraphs'"),
        (("data", 1, "paragraphs"), None, "a.json, article 2 has no 'paragraphs', only 'title'"),
        (("data", 1, "paragraphs", 1, "context"), None, "a.json, article 2, paragraph 2 has no 'context', only 'qas'"),
        (("data", 1, "paragraphs", 1, "context"), 5, "a.json, article 2, paragraph 2: 'context' is int, not str"),
        (("data", 1, "paragraphs", 1, "qas"), None, "a.json, article 2, paragraph 2 has no 'qas'"),
        (QUESTION, 7, f"{IN_QUESTION} is a JSON int"),
        ((*QUESTION, "id"), None, f"{IN_QUESTION} has no 'id'"),
        ((*QUESTION, "id"), 7, f"{IN_QUESTION}: 'id' is int, not str"),
        ((*QUESTION, "id"), "q3", "question 3: the id 'q3' is also that of " + IN_QUESTION),
        ((*QUESTION, "question"), None, f"{IN_QUESTION} has no 'question'"),
        ((*QUESTION, "is_impossible"), "no", f"{IN_QUESTION}: 'is_impossible' is str, not bool"),
        ((*QUESTION, "answers"), None, f"{IN_QUESTION} has no 'answers'"),
        ((*QUESTION, "answers"), {"text": ["Mira"]}, f"{IN_QUESTION}: 'answers' is dict, not list"),
        ((*QUESTION, "answers", 1, "text"), None, f"{IN_QUESTION}, answer 2 has no 'text'"),
        ((*QUESTION, "answers", 1, "text"), " ", f"{IN_QUESTION}, answer 2 has no text"),
        ((*QUESTION, "answers", 1, "text"), "mira", f"{IN_QUESTION}, answer 2: 'mira' is not in the context"),
        ((*QUESTION, "answers", 1, "answer_start"), True, f"{IN_QUESTION}, answer 2: 'answer_start' is bool, not int"),
        ((*QUESTION, "answers", 1, "answer_start"), 0.0, f"{IN_QUESTION}, answer 2: 'answer_start' is float"),
    ],
)
def test_what_is_broken_is_refused_with_its_place(tmp_path, keys, value, reason):
    root = copy.deepcopy(FILE)
    inner = root
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, root)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "a.json is empty"),
        ('{"data": [', "a.json is not valid JSON"),
        ("[1]", "a.json is a JSON list, not an object with 'data'"),
        (json.dumps(one_answer("x", 0, "x\ud800")), "a.json has a text that is not valid Unicode"),
    ],
)
def test_no_squad_at_all(tmp_path, content, reason):
    with pytest.raises(ValueError, match=reason):
        read(tmp_path, content)


def test_all_of_squad(tmp_path):
    folder = Path(os.environ.get("INGOT_SHARED_DATA", ROOT.parent / "shared/data")) / "squad"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    for name, count in {"train": 87_599, "dev": 10_570}.items():
        path = tmp_path / f"{name}.json"
        path.write_bytes(lzma.decompress((folder / f"{name}-v1.1.recovered.json.xz").read_bytes()))
        questions = read_squad(path)
        assert len(questions) == len({question.id for question in questions}) == count
        assert all(question.answers for question in questions)
        for question in questions:
            assert all(question.context[start:].startswith(text) for text, start in question.answers)
