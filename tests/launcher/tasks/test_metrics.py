"""Scores have the values that one computes by hand, those of official scripts, and no warnings."""

import math
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ingot.launcher.tasks.metrics import (
    answer_scores,
    classification_report,
    classification_scores,
    confusion,
    entity_report,
    entity_scores,
    multi_label_report,
    multi_label_scores,
    regression_scores,
    text_scores,
)

pytestmark = pytest.mark.filterwarnings("error")
ROOT = Path(__file__).resolve().parents[3]
LABELS = ["bad", "fair", "good"]


def approx(**scores):
    return pytest.approx(scores, abs=1e-12)


def plain(scores):
    assert all(type(value) is float for value in scores.values())
    return scores


def test_two_classes():
    true, predicted = [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 1, 0, 0, 0, 0]  # of class 1: 2 right, 1 too many, 1 missed
    scores = plain(classification_scores(predicted, true, LABELS[:2]))
    f1, f1_of_0 = 2 / 3, 4 / 5
    matthews = (2 * 4 - 1 * 1) / math.sqrt(3 * 3 * 5 * 5)
    assert scores == approx(
        accuracy=6 / 8, f1=f1, f1_macro=(f1 + f1_of_0) / 2, matthews=matthews, precision=2 / 3, recall=2 / 3
    )
    assert confusion(predicted, true, LABELS[:2]).tolist() == [[4, 1], [1, 2]]


def test_three_classes():
    true, predicted = [0, 0, 0, 0, 1, 1, 2], [0, 0, 1, 2, 1, 1, 2]
    counts = confusion(np.array(predicted, np.int32), true, LABELS)
    assert counts.tolist() == [[2, 1, 1], [0, 2, 0], [0, 0, 1]]
    assert counts.dtype == np.int64
    precision, recall = np.array([2 / 2, 2 / 3, 1 / 2]), np.array([2 / 4, 2 / 2, 1 / 1])
    f1 = np.mean(2 * precision * recall / (precision + recall))
    right, total, columns, rows = np.trace(counts), counts.sum(), counts.sum(0), counts.sum(1)  # Gorodkin 2004
    spread = math.sqrt(float((total**2 - columns @ columns) * (total**2 - rows @ rows)))
    assert plain(classification_scores(predicted, true, LABELS)) == approx(
        accuracy=5 / 7,
        f1=f1,
        f1_macro=f1,
        matthews=float(right * total - columns @ rows) / spread,
        precision=precision.mean(),
        recall=recall.mean(),
    )
    with_absent = classification_scores(predicted, true, [*LABELS, "best"])  # a class that is nowhere changes nothing
    assert with_absent == classification_scores(predicted, true, LABELS)


@pytest.mark.parametrize("num_labels", [2, 3])
@pytest.mark.parametrize(("predicted", "true"), [([0, 0], [0, 0]), ([0, 0], [0, 1]), ([1, 1], [1, 0]), ([1], [1])])
def test_constant_classes_are_no_error(predicted, true, num_labels):
    scores = plain(classification_scores(predicted, true, LABELS[:num_labels]))
    assert scores["matthews"] == 0
    if num_labels == 2:
        right = sum(a == b == 1 for a, b in zip(predicted, true, strict=True))
        assert scores["recall"] == (right / sum(true) if sum(true) else 0)
        assert scores["precision"] == (right / sum(predicted) if sum(predicted) else 0)
    assert "bad" in classification_report(predicted, true, LABELS[:num_labels])


def test_report_of_classes():
    lines = classification_report([0, 0, 1], [0, 1, 1], LABELS).splitlines()
    assert lines[2].split() == ["bad", "0.5000", "1.0000", "0.6667", "1"]
    assert lines[4].split() == ["good", "0.0000", "0.0000", "0.0000", "0"]


def test_several_labels_each():
    true = np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 0]], bool)
    predicted = np.array([[1, 0, 1], [0, 1, 1], [1, 0, 0], [0, 0, 0]], bool)
    scores = plain(multi_label_scores(predicted, true, LABELS))
    assert scores == approx(f1_micro=2 * 4 / (5 + 5), f1_macro=(1 + 2 / 3 + 2 / 3) / 3, accuracy=2 / 4)
    assert multi_label_report(predicted, true, LABELS).splitlines()[3].split()[:4] == [
        "fair",
        "1.0000",
        "0.5000",
        "0.6667",
    ]
    nothing = multi_label_scores(np.zeros((2, 3), bool), np.zeros((2, 3), bool), LABELS)
    assert nothing == approx(f1_micro=0.0, f1_macro=0.0, accuracy=1.0)
    assert "good" in multi_label_report(np.zeros((2, 3), bool), true[:2], LABELS)


def test_one_label_that_may_be_there():
    one, both = np.array([[True], [False]]), np.array([[True], [True]])
    assert multi_label_scores(one, both, ["x"]) == approx(f1_micro=2 / 3, f1_macro=2 / 3, accuracy=1 / 2)
    assert multi_label_report(one, both, ["x"]).splitlines()[2].split() == ["x", "1.0000", "0.5000", "0.6667", "2"]
    assert multi_label_report(~both, ~both, ["x"]).splitlines()[2].split()[1:] == ["0.0000", "0.0000", "0.0000", "0"]


def test_several_labels_score_as_in_scikit_learn():
    from sklearn.metrics import f1_score

    draw = np.random.default_rng(0)
    for _ in range(50):
        predicted, true = draw.random((2, 9, 4)) < draw.random()
        scores = multi_label_scores(predicted, true, ["a", "b", "c", "d"])
        assert scores["f1_micro"] == pytest.approx(f1_score(true, predicted, average="micro", zero_division=0))
        assert scores["f1_macro"] == pytest.approx(f1_score(true, predicted, average="macro", zero_division=0))


def test_correlations():
    scores = plain(regression_scores([1.0, 2.0, 4.0, 3.0], [1.0, 2.0, 3.0, 10.0]))
    x, y = np.array([-1.5, -0.5, 1.5, 0.5]), np.array([-3.0, -2.0, -1.0, 6.0])
    assert scores == approx(
        pearson=x @ y / math.sqrt((x @ x) * (y @ y)),
        spearman=1 - 6 * 2 / (4 * 15),  # ranks differ by 0, 0, 1 and 1
        mean_squared_error=(1 + 49) / 4,
    )
    ties = regression_scores(np.array([1, 1, 2], np.float32), [0, 1, 1])
    assert ties["spearman"] == pytest.approx(0.5)  # ranks 1.5 1.5 3 and 1 2.5 2.5


@pytest.mark.parametrize(("predicted", "true"), [([2, 2, 2], [1, 2, 3]), ([1, 2, 3], [0.1, 0.1, 0.1]), ([1], [3])])
def test_a_constant_correlates_with_nothing(predicted, true):
    scores = plain(regression_scores(predicted, true))
    assert (scores["pearson"], scores["spearman"]) == (0, 0)
    assert scores["mean_squared_error"] > 0


def test_nearly_constant_predictions_do_not_warn():
    scores = plain(regression_scores([1, 1, 1 + 1e-15], [1, 2, 3]))
    assert scores["spearman"] == pytest.approx(math.sqrt(3) / 2)
    assert math.isfinite(scores["pearson"])


def test_whole_entities():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["B-LOC", "B-LOC", "O"], ["O"]]
    predicted = [["B-PER", "I-PER", "O", "B-ORG"], ["B-LOC", "I-LOC", "I-PER"], ["O"]]
    # true: PER, LOC, LOC, LOC; predicted: PER, ORG, LOC over two words, PER (begun by its I-): one right
    assert plain(entity_scores(predicted, true)) == approx(precision=1 / 4, recall=1 / 4, f1=1 / 4, accuracy=5 / 8)
    lines = entity_report(predicted, true).splitlines()
    assert ["PER", "0.5000", "1.0000", "0.6667", "1"] in [line.split() for line in lines]
    longer = [["B-PER", "I-PER", "I-PER", "B-LOC"], *true[1:]]
    assert entity_scores(longer, true)["recall"] == 3 / 4
    assert entity_scores(tuple(map(tuple, true)), true) == approx(precision=1.0, recall=1.0, f1=1.0, accuracy=1.0)


def test_entities_end_with_their_sentence():
    whole, split = [["B-LOC", "I-LOC"]], [["B-LOC"], ["I-LOC"]]
    assert entity_scores(whole, whole)["f1"] == entity_scores(split, split)["f1"] == 1
    assert entity_report(split, split).splitlines()[2].split()[-1] == "2"


def test_no_entities():
    nothing = [["O", "O"], ["O"]]
    assert plain(entity_scores(nothing, nothing)) == approx(precision=0.0, recall=0.0, f1=0.0, accuracy=1.0)
    assert "no entities" in entity_report(nothing, nothing)
    assert entity_scores(nothing, [["B-A", "O"], ["O"]])["recall"] == 0
    assert "A" in entity_report(nothing, [["B-A", "O"], ["O"]])


def conlleval(sentences):
    """The entities of sentences, after the rules of conlleval.pl: (sentence, first, last, type)."""
    found = set()
    for number, labels in enumerate(sentences):
        start = None
        for place, (left, label) in enumerate(zip(["O", *labels], [*labels, "O"], strict=True)):
            continues = label[0] == "I" and left[0] in "BI" and label[2:] == left[2:]
            if start is not None and not continues:
                found.add((number, start, place - 1, left[2:]))
                start = None
            if label[0] in "BI" and not continues:
                start = place
    return found


def test_entities_are_those_of_conlleval():
    draw = random.Random(0)
    for _ in range(200):
        sizes = [draw.randrange(1, 9) for _ in range(3)]
        true, predicted = (
            [draw.choices(["O", "B-A", "I-A", "B-B", "I-B"], k=size) for size in sizes] for _ in range(2)
        )
        ours, theirs = conlleval(predicted), conlleval(true)
        right = len(ours & theirs)
        scores = entity_scores(predicted, true)
        assert scores["precision"] == pytest.approx(right / len(ours) if ours else 0)
        assert scores["recall"] == pytest.approx(right / len(theirs) if theirs else 0)
        assert scores["f1"] == pytest.approx(2 * right / (len(ours) + len(theirs)) if ours or theirs else 0)


@pytest.mark.parametrize(
    ("predicted", "answers", "exact_match", "f1"),
    [
        ("The  Heron!", ["heron"], 1, 1),
        ("a grey heron", ["heron", "the grey bird"], 0, 2 / 3),  # 1 of 2 words and 1 of 1; 1 of 2 and 1 of 2
        ("heron heron", ["heron"], 0, 2 / 3),
        ("U.S.", ["US"], 1, 1),
        ("3,000", ["3000"], 1, 1),
        ("an-heron", ["anheron"], 1, 1),  # punctuation goes before articles do
        ("an heron", ["n heron"], 0, 2 / 3),
        ("theheron", ["heron"], 0, 0),
        ("“heron”", ["heron"], 0, 0),  # only ASCII has punctuation there
        ("", [], 1, 1),
        ("the", [], 1, 1),
        ("heron", [], 0, 0),
        ("", ["heron"], 0, 0),
        ("", ["the", "heron"], 0, 0),  # an answer of which nothing is left does not count beside others
        ("", ["the", "!"], 1, 1),
        ("stork", ["the"], 0, 0),
    ],
)
def test_answers(predicted, answers, exact_match, f1):
    scores = plain(answer_scores({"q": predicted}, {"q": answers}))
    assert scores == approx(exact_match=100 * exact_match, f1=100 * f1)
    half = answer_scores({"q": predicted, "other": "x"}, {"other": ["y"], "q": answers})
    assert half == approx(exact_match=50 * exact_match, f1=50 * f1)


ANSWER_WORDS = ["the", "The", "An", "heron", "Heron,", "herons'", "a-heron", "U.S.", "über", "Über", "“the”", "the."]
ANSWER_WORDS += ["—", "\u00a0", ",", "the-the", "an_the", "中文", "nile", "Nile's", "", "\n"]


def many_answers(size):
    """Questions with up to three answers of up to four words, many without any, and predictions like them."""
    draw = random.Random(7)

    def text():
        return draw.choice([" ", "  ", ""]).join(draw.choices(ANSWER_WORDS, k=draw.randrange(5)))

    answers = {str(number): [text() for _ in range(max(0, draw.randrange(-1, 4)))] for number in range(size)}
    predicted = {key: draw.choice([*texts, ""]) + draw.choice(["", f" {text()}"]) for key, texts in answers.items()}
    return predicted, answers


def test_many_answers_score_as_with_the_official_script():
    predicted, answers = many_answers(5000)
    assert 1500 < sum(not texts for texts in answers.values()) < 2500
    scores = answer_scores(predicted, answers)  # expected: squad_evaluate of transformers 4.40 (squad_metrics.py)
    assert scores == pytest.approx({"exact_match": 50.06, "f1": 57.09582051282047}, rel=1e-9)


def test_texts():
    predicted, references = ["the grey heron stands", " yes"], ["the heron stands still", "yes "]
    scores = plain(text_scores(predicted, references))
    # 3 of 4 words, 1 of 3 pairs ("heron stands"), and "the heron stands" in order
    assert scores["rouge1"] == pytest.approx((3 / 4 + 1) / 2)
    assert scores["rouge2"] == pytest.approx((1 / 3 + 0) / 2)
    assert scores["rougeL"] == pytest.approx((3 / 4 + 1) / 2)
    assert scores["exact_match"] == 1 / 2
    assert scores["bleu"] < 100


def test_bleu_of_a_corpus():
    text, reference = "one two three four five six", "one two three four five seven eight"
    precisions = np.array([(5 + 3) / (6 + 3), (4 + 2) / (5 + 2), (3 + 1) / (4 + 1), (2 + 0) / 3])
    expected = 100 * math.exp(1 - 10 / 9) * math.exp(np.log(precisions).mean())
    scores = text_scores([text, "a b c"], [reference, "a b c"])
    assert scores["bleu"] == pytest.approx(expected)
    assert text_scores([text], [text])["bleu"] == pytest.approx(100)
    assert text_scores(["", "x"], ["y", "z"]) == approx(rouge1=0.0, rouge2=0.0, rougeL=0.0, bleu=0.0, exact_match=0.0)


def test_no_word_on_texts_that_end_in_full_stops(capfd, caplog):
    text_scores(["a b ."] * 200, ["a b ."] * 200)
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "call",
    [
        lambda: classification_scores([0], [0, 1], LABELS),
        lambda: classification_scores([3], [0], LABELS),
        lambda: classification_scores([-1], [0], LABELS),
        lambda: classification_scores([0.5], [0], LABELS),
        lambda: classification_scores([], [], LABELS),
        lambda: confusion([[0]], [[0]], LABELS),
        lambda: multi_label_scores(np.ones((2, 3), bool), np.ones((3, 3), bool), LABELS),
        lambda: multi_label_scores(np.ones((2, 2), bool), np.ones((2, 2), bool), LABELS),
        lambda: multi_label_scores(np.ones((2, 3)), np.ones((2, 3), bool), LABELS),
        lambda: regression_scores([1.0], [1.0, 2.0]),
        lambda: regression_scores([[1.0], [2.0]], [1.0, 2.0]),
        lambda: regression_scores([], []),
        lambda: entity_scores([["O"]], [["O"], ["O"]]),
        lambda: entity_scores([["O"]], [["O", "O"]]),
        lambda: entity_report([[]], [[]]),
        lambda: answer_scores({"a": ""}, {"b": []}),
        lambda: answer_scores({}, {}),
        lambda: text_scores(["a"], ["a", "b"]),
        lambda: text_scores([], []),
    ],
)
def test_what_does_not_match_is_a_bug(call):
    with pytest.raises(AssertionError):
        call()


def test_importing_the_kinds_imports_none_of_their_libraries():
    names = {"sklearn", "scipy", "seqeval", "rouge_score", "sacrebleu", "nltk", "matplotlib", "torch"}
    code = f"import sys, ingot.launcher.tasks.registry; sys.exit(bool({names} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
