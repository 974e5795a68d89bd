"""From files of tasks to examples: framing, cutting, targets, and what is wrong with a file."""

import json
import os
import re
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest

from ingot.data.tasks.instruction import read_instruction
from ingot.data.tasks.multiple_choice import read_multiple_choice
from ingot.data.tasks.question_answering import read_question_answering
from ingot.data.tasks.sequence_classification import read_classification, read_multi_label, read_regression
from ingot.data.tasks.task_data import TaskSettings
from ingot.data.tasks.token_classification import read_token_classification
from ingot.data.tokenizers.load import load_tokenizer
from tests.launcher.tiny_models import released_bert


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return load_tokenizer(released_bert(tmp_path_factory.mktemp("released") / "bert"))


@pytest.fixture
def write(tmp_path):
    def write(records, name="train.jsonl"):
        path = tmp_path / name
        path.write_text(records if isinstance(records, str) else "".join(json.dumps(r) + "\n" for r in records))
        return str(path)

    return write


def words(tokenizer, ids) -> str:
    pieces = tokenizer.pieces()
    return " ".join(pieces[i] for i in ids)


def test_a_text_and_a_pair_are_framed_as_bert_reads_them(tokenizer, write):
    path = write([{"a": "the film", "b": "was good", "label": "x"}, {"a": "music", "b": "was", "label": "y"}])
    one = read_classification(path, TaskSettings(["a"]), tokenizer)
    assert words(tokenizer, one.examples[0].ids) == "[CLS] the film [SEP]"
    assert one.labels == ["x", "y"]
    assert [int(example.target) for example in one.examples] == [0, 1]
    two = read_classification(path, TaskSettings(["a", "b"]), tokenizer)
    assert words(tokenizer, two.examples[0].ids) == "[CLS] the film [SEP] was good [SEP]"
    assert two.examples[0].types.tolist() == [0, 0, 0, 0, 1, 1, 1]


def test_long_examples_are_cut_as_transformers_cuts_them_and_counted(tokenizer, write):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tokenizer.folder)
    pairs = [("the film was good", "music"), ("film", "the music was very good"), ("the film was", "the music was")]
    path = write([{"a": a, "b": b, "label": 0} for a, b in pairs])
    for length in range(4, 12):
        found = read_classification(path, TaskSettings(["a", "b"], max_length=length), tokenizer)
        expected = [theirs(a, b, truncation="longest_first", max_length=length)["input_ids"] for a, b in pairs]
        assert [example.ids.tolist() for example in found.examples] == expected
        whole = [len(theirs(a, b)["input_ids"]) for a, b in pairs]
        assert found.num_truncated == sum(each > length for each in whole)
    with pytest.raises(ValueError, match=r"train.jsonl, line 2 has 6 tokens, and there is room for 5"):
        read_classification(path, TaskSettings(["a", "b"], max_length=8, refuse_overlong=True), tokenizer)


def test_numbers_are_labels_in_their_order(tokenizer, write):
    path = write([{"text": "film", "label": label} for label in (10, 9, 2, 10)])
    assert read_classification(path, TaskSettings(["text"]), tokenizer).labels == ["2", "9", "10"]


def test_labels_get_other_names_in_their_own_order(tokenizer, write):
    path = write([{"text": "film", "label": label} for label in (10, 9, 2, 10)])
    names = {"2": "two", "10": "a ten"}
    found = read_classification(path, TaskSettings(["text"], label_names=names), tokenizer)
    assert found.labels == ["two", "9", "a ten"]
    assert [int(example.target) for example in found.examples] == [2, 1, 0, 2]
    settings = TaskSettings(["text"], labels=found.labels, label_names=names)  # of a second file
    again = read_classification(path, settings, tokenizer)
    assert [int(example.target) for example in again.examples] == [2, 1, 0, 2]
    path = write([{"text": "film", "label": "b,a"}])
    several = read_multi_label(path, TaskSettings(["text"], label_names={"b": "B"}), tokenizer)
    assert (several.labels, several.examples[0].target.tolist()) == (["a", "B"], [1, 1])
    path = write([{"words": ["anna", "bertha", "lives", "rome"], "label": [1, 2, 0, 3]}])
    names = {"0": "O", "1": "B-PER", "2": "I-PER", "3": "I-LOC"}
    tags = read_token_classification(path, TaskSettings(["words"], label_names=names), tokenizer)
    assert tags.labels == ["O", "B-PER", "I-PER", "B-LOC"]
    assert tags.records[0].labels == ["B-PER", "I-PER", "O", "B-LOC"]
    second = write([{"words": ["anna"], "label": [1]}])
    settings = TaskSettings(["words"], labels=tags.labels, label_names=names)
    assert read_token_classification(second, settings, tokenizer).records[0].labels == ["B-PER"]
    path = write([{"words": ["anna", "lives"], "label": [1, 0]}])
    with pytest.raises(ValueError, match=r"task.label_names names 'x', and the labels are '0', '1'"):
        read_token_classification(path, TaskSettings(["words"], label_names={"x": "y"}), tokenizer)
    with pytest.raises(ValueError, match="more than one label the name 'O'"):
        read_token_classification(path, TaskSettings(["words"], label_names={"1": "O", "0": "O"}), tokenizer)


def test_several_labels_and_numbers(tokenizer, write):
    path = write([{"text": "film", "l": ["b", "a"], "n": 1, "m": 0.5}, {"text": "film", "l": "", "n": -2, "m": 3}])
    found = read_multi_label(path, TaskSettings(["text"], "l"), tokenizer)
    assert found.labels == ["a", "b"]
    assert [example.target.tolist() for example in found.examples] == [[1, 1], [0, 0]]
    found = read_regression(path, TaskSettings(["text"], "n,m"), tokenizer)
    assert [example.target.tolist() for example in found.examples] == [[1, 0.5], [-2, 3]]


def test_a_choice_has_a_document_for_each_ending(tokenizer, write):
    path = write([{"text": "the film was", "endings": ["good", "bad and poor"], "label": 1}])
    (example,) = read_multiple_choice(path, TaskSettings(["text", "endings"]), tokenizer).examples
    assert example.documents == (7, 9)
    assert words(tokenizer, example.ids[:7]) == "[CLS] the film was [SEP] good [SEP]"
    assert int(example.target) == 1
    path = write([{"text": "the", "endings": ["a", "b"], "label": 2}])
    with pytest.raises(ValueError, match="the label is 2, and there are 2 endings"):
        read_multiple_choice(path, TaskSettings(["text", "endings"]), tokenizer)


CONLL = "the DT O\ncarl NNP I-PER\nzz NN I-PER\n\nrome NNP I-LOC\nanna NNP I-PER\nbertha NNP B-PER\n"


def test_labels_of_words_stand_on_their_first_tokens_in_iob2(tokenizer, write):
    found = read_token_classification(write(CONLL, "train.conll"), TaskSettings([]), tokenizer)
    assert found.labels == ["B-LOC", "B-PER", "I-PER", "O"]
    first, second = found.examples
    assert words(tokenizer, first.ids) == "[CLS] the carl z ##z [SEP]"
    assert [found.labels[t] if t >= 0 else "" for t in first.target] == ["", "O", "B-PER", "I-PER", "", ""]
    assert first.alignment.tolist() == [-1, 0, 1, 2, -1, -1]
    assert [found.labels[t] for t in second.target if t >= 0] == ["B-LOC", "B-PER", "B-PER"]
    assert first.num_targets == 3


def test_labels_that_begin_inside_are_counted(tokenizer, write):
    path = write(CONLL.replace("O\n", "B-LOC\n"), "mixed.conll")
    found = read_token_classification(path, TaskSettings([]), tokenizer)
    assert found.num_repaired_labels == 3  # the first of each run of I-
    assert [[found.labels[t] for t in each.target if t >= 0] for each in found.examples] == [
        ["B-LOC", "B-PER", "I-PER"],
        ["B-LOC", "B-PER", "B-PER"],
    ]


def test_long_sentences_are_cut_at_words_and_lose_none(tokenizer, write):
    text = "\n".join(f"{word} {tag}" for word, tag in [("zzz", "B-X"), ("the", "O"), ("yyyy", "I-Y")] * 5)
    text = text.replace("I-Y", "B-Y")
    found = read_token_classification(write(text, "train.txt"), TaskSettings([], max_length=8), tokenizer)
    assert max(len(example.ids) for example in found.examples) <= 8
    places = np.concatenate([example.alignment[example.alignment >= 0] for example in found.examples])
    assert places.tolist() == list(range(15))
    assert found.num_truncated == 1
    for example in found.examples:
        assert not words(tokenizer, example.ids[1:]).startswith("##")


def test_context_is_of_the_same_document_and_has_no_labels(tokenizer, write):
    lines = ["-DOCSTART- O", "", "the O", "film O", "", "was O", "", "carl B-PER", "", "-DOCSTART- O", "", "anna B-PER"]
    path = write("\n".join(lines), "train.conll")
    framed = {}
    for context, length in ((9, 32), (1, 32), (9, 5), (9, 4)):
        found = read_token_classification(
            path, TaskSettings([], document_context=context, max_length=length), tokenizer
        )
        framed[context, length] = [words(tokenizer, example.ids) for example in found.examples]
        for example, sentence in zip(found.examples, found.records, strict=True):
            seen = words(tokenizer, example.ids).split()
            assert [seen[i] for i in np.flatnonzero(example.alignment >= 0)] == sentence.words
            assert [found.labels[t] for t in example.target if t >= 0] == sentence.labels
            assert (example.alignment >= 0).tolist() == (example.target >= 0).tolist()
    assert framed[9, 32] == ["[CLS] the film was carl [SEP]"] * 3 + ["[CLS] anna [SEP]"]
    assert framed[1, 32] == ["[CLS] the film was [SEP]", "[CLS] film was carl [SEP]", "[CLS] was carl [SEP]",
                             "[CLS] anna [SEP]"]  # fmt: skip
    assert framed[9, 5] == ["[CLS] the film was [SEP]", "[CLS] film was carl [SEP]", "[CLS] film was carl [SEP]",
                            "[CLS] anna [SEP]"]  # fmt: skip
    assert framed[9, 4][1:] == ["[CLS] was carl [SEP]", "[CLS] was carl [SEP]", "[CLS] anna [SEP]"]


def test_records_are_no_context_of_each_other(tokenizer, write):
    path = write([{"words": ["the", "film"], "label": ["O", "O"]}, {"words": ["anna"], "label": ["B-PER"]}])
    found = read_token_classification(path, TaskSettings(["words"], document_context=9), tokenizer)
    assert [words(tokenizer, example.ids) for example in found.examples] == ["[CLS] the film [SEP]", "[CLS] anna [SEP]"]


def squad(context: str, question: str, answer: str | None) -> str:
    answers = [] if answer is None else [{"text": answer, "answer_start": context.index(answer)}]
    asked = {"id": "1", "question": question, "answers": answers, "is_impossible": answer is None}
    return json.dumps({"data": [{"paragraphs": [{"context": context, "qas": [asked]}]}]})


def test_an_answer_is_its_first_and_last_token(tokenizer, write):
    path = write(squad("anna lives in rome and carl in oslo", "where lives anna ?", "rome and carl"), "train.json")
    (example,) = read_question_answering(path, TaskSettings([], max_length=32, doc_stride=4), tokenizer).examples
    start, end = example.target
    assert words(tokenizer, example.ids[start : end + 1]) == "rome and carl"
    assert example.types[start] == 1
    assert (
        "anna lives in rome and carl in oslo"[slice(example.alignment[start, 0], example.alignment[end, 1])]
        == "rome and carl"
    )


def test_a_long_paragraph_is_read_in_windows_that_overlap(tokenizer, write):
    context = " ".join(["film"] * 20 + ["rome"] + ["music"] * 20)
    path = write(squad(context, "where ?", "rome"), "train.json")
    examples = read_question_answering(path, TaskSettings([], max_length=21, doc_stride=8), tokenizer).examples
    places = [example.alignment[example.alignment[:, 0] >= 0, 0] for example in examples]
    assert set(np.concatenate(places).tolist()) == {m.start() for m in re.finditer(r"\w+", context)}
    for one, two in pairwise(places):
        assert len(set(one.tolist()) & set(two.tolist())) == 8
    for example in examples:
        start, end = example.target
        inside = "rome" in words(tokenizer, example.ids).split()
        assert (words(tokenizer, example.ids[start : end + 1]) == "rome") == inside
        assert inside or (start, end) == (0, 0)
    with pytest.raises(ValueError, match=r"leaves 3 for the paragraph; task.doc_stride is 8"):
        read_question_answering(path, TaskSettings([], max_length=8, doc_stride=8), tokenizer)


@pytest.mark.parametrize("form", ["train.json", "train.jsonl"])
def test_white_space_around_an_answer_is_left_out_and_counted(form, tokenizer, write):
    context, told = "anna lives in  rome \nand carl", {"text": [" \u2003rome \n"], "answer_start": [13]}
    context = context.replace("  rome", " \u2003rome")
    if form == "train.json":
        content = json.loads(squad(context, "where ?", told["text"][0]))
        path = write(json.dumps(content), form)
    else:
        path = write([{"question": "where ?", "context": context, "answers": told}], form)
    data = read_question_answering(path, TaskSettings(["question", "context"], max_length=32, doc_stride=4), tokenizer)
    (example,) = data.examples
    start, end = example.target
    assert words(tokenizer, example.ids[start : end + 1]) == "rome"
    assert data.records[0].answers == [("rome", context.index("rome"))]
    assert (data.num_stripped_answers, data.num_lost_answers) == (1, 0)


def test_an_answer_that_fits_no_window_is_counted_and_not_learned_as_no_answer(tokenizer, write):
    context = " ".join(["film"] * 20 + ["rome and music"] + ["music"] * 20)
    path = write(squad(context, "where ?", "rome and music"), "train.json")
    whole = read_question_answering(path, TaskSettings([], max_length=64, doc_stride=2), tokenizer)
    assert whole.num_lost_answers == 0
    found = read_question_answering(path, TaskSettings([], max_length=8, doc_stride=0), tokenizer)
    assert found.num_lost_answers == 1
    assert {(*example.target.tolist(), example.num_targets) for example in found.examples} == {(-100, -100, 0)}
    none = read_question_answering(
        write(squad(context, "?", None), "n.json"), TaskSettings([], doc_stride=2), tokenizer
    )
    assert [example.target.tolist() for example in none.examples] == [[0, 0]]
    assert none.num_lost_answers == 0
    settings = TaskSettings([], doc_stride=2, no_answer=False)
    with pytest.raises(ValueError, match=r"question 1: the question has no answer, and task.no_answer is false"):
        read_question_answering(write(squad(context, "?", None), "n.json"), settings, tokenizer)


def test_no_answer_points_at_the_first_token(tokenizer, write):
    path = write(squad("anna lives in rome", "who ?", None), "train.json")
    (example,) = read_question_answering(path, TaskSettings([], doc_stride=2), tokenizer).examples
    assert example.target.tolist() == [0, 0]


def learned(tokenizer, example) -> str:
    """The tokens that are targets, each of which the token before it has."""
    assert example.target[-1] == -100
    targets = [(n, int(t)) for n, t in enumerate(example.target) if t != -100]
    assert all(example.ids[n + 1] == t for n, t in targets)
    return words(tokenizer, [t for _, t in targets])


def test_only_the_output_is_learned(tokenizer, write):
    path = write([{"input": "the film", "output": "was good"}])
    settings = TaskSettings(["input", "output"], template="film : {input} ?")
    (example,) = read_instruction(path, settings, tokenizer).examples
    assert words(tokenizer, example.ids) == "[CLS] film : the film ? was good [SEP]"
    assert learned(tokenizer, example) == "was good [SEP]"
    assert example.num_targets == 3
    with pytest.raises(ValueError, match=r"must have the slot \{input\}"):
        read_instruction(path, TaskSettings(["input", "output"], template="film"), tokenizer)
    with pytest.raises(ValueError, match="nothing of the output is left within 4 tokens"):
        read_instruction(path, TaskSettings(["input", "output"], max_length=4, template=settings.template), tokenizer)


def test_of_a_chat_what_the_assistant_says_is_learned(tokenizer, write):
    chat = [("user", "where ?"), ("assistant", "rome"), ("user", "who ?"), ("assistant", "anna")]
    path = write([{"messages": [{"role": role, "content": text} for role, text in chat]}])
    for form, expected in (("auto", "rome [SEP] anna [SEP]"), ("never", "rome anna [SEP]")):
        settings = TaskSettings(["messages"], chat_template=form)
        (example,) = read_instruction(path, settings, tokenizer).examples
        assert learned(tokenizer, example) == expected
        (asked,) = read_instruction(path, settings, tokenizer, labelled=False).examples
        assert asked.ids.tolist() == example.ids[: len(asked.ids)].tolist()
        assert words(tokenizer, asked.ids).replace("[SEP] ", "").endswith("who ? a ##s ##s ##i ##s ##t ##a ##n ##t :")


def test_an_input_can_be_what_a_user_says(tokenizer, write):
    path = write([{"input": "the film", "output": "was good"}])
    settings = TaskSettings(["input", "output"], template="film : {input} ?", chat_template="always")
    (example,) = read_instruction(path, settings, tokenizer).examples
    chat = write(
        [{"m": [{"role": "user", "content": "film : the film ?"}, {"role": "assistant", "content": "was good"}]}]
    )
    (same,) = read_instruction(chat, TaskSettings(["m"]), tokenizer).examples
    assert example.ids.tolist() == same.ids.tolist()
    assert learned(tokenizer, example) == "was good [SEP]"


WRONG = {
    "an empty text": ([{"text": " ", "label": "x"}], "line 1: 'text' is empty"),
    "a text that is a number": ([{"text": 3, "label": "x"}], "line 1: 'text' is 3, which is not a text"),
    "a label that is a list": ([{"text": "film", "label": ["x"]}], r"line 1: 'label' is \['x'\]"),
    "no such column": ([{"sentence": "film", "label": "x"}], "no column 'text'; there are: 'sentence', 'label'"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_said_with_its_line(what, tokenizer, write):
    records, message = WRONG[what]
    with pytest.raises(ValueError, match=message):
        read_classification(write(records), TaskSettings(["text"]), tokenizer)


def test_a_number_that_is_none_and_a_label_outside_the_set(tokenizer, write):
    path = write([{"text": "film", "label": "nan"}])
    with pytest.raises(ValueError, match="line 1: 'label' is 'nan', which is not a number"):
        read_regression(path, TaskSettings(["text"]), tokenizer)
    with pytest.raises(ValueError, match=r"the label 'nan' is none of 'a', 'b'; set task.labels"):
        read_classification(path, TaskSettings(["text"], labels=["a", "b"]), tokenizer)


@pytest.mark.parametrize("values", [["1", "01", "2", "001", "10"], ["b", "a", "B"]])
def test_the_order_of_labels_does_not_depend_on_the_seed_of_hashes(values):
    script = f"from ingot.data.tasks.labels import find_labels; print(find_labels({values}))"
    printed = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in range(4)
    }
    assert printed == {f"{sorted(values, key=lambda v: (int(v), v) if v.isdigit() else v)}\n"}
