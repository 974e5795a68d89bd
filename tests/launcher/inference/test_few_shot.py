"""Classification by prompts: the scores are the likelihoods that transformers computes; bad options are refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ingot.data.tokenizers.load import load_tokenizer
from ingot.launcher import classify
from ingot.launcher.inference.few_shot import FewShotClassifier, PromptTemplate, choose_shots
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.model.huggingface.load import load
from tests.launcher.tiny_models import released_bert, write_task

WORDS = {"a": "good", "b": "very bad", "c": "awful"}
TEXTS = [{"text": "the film was great"}, {"text": "music"}, {"text": "anna lives in rome with carl"}]


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    from transformers import BertConfig, BertForMaskedLM

    folder = released_bert(tmp_path_factory.mktemp("released") / "masked")
    torch.manual_seed(1)
    BertForMaskedLM(BertConfig.from_pretrained(folder)).save_pretrained(folder)
    return folder


def likelihoods(folder, prompt: str, after: str, causal: bool) -> list[float]:
    """The log-likelihood of each label's words, computed by transformers, one prompt at a time."""
    from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer

    model = (AutoModelForCausalLM if causal else AutoModelForMaskedLM).from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    encode = lambda text: tokenizer.encode(text, add_special_tokens=False)  # noqa: E731
    sums = []
    for word in WORDS.values():
        target_ids, head = encode(word), [tokenizer.cls_token_id, *encode(prompt)]
        middle = target_ids if causal else [tokenizer.mask_token_id] * len(target_ids)
        ids = head + middle + ([] if causal else [*encode(after), tokenizer.sep_token_id])
        with torch.no_grad():
            log_probabilities = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        first = len(head) - causal
        sums.append(sum(float(log_probabilities[first + n, token]) for n, token in enumerate(target_ids)))
    return sums


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_scores_are_the_likelihoods_of_transformers(family, gpt2, masked):
    folder, causal = (gpt2, True) if family == "gpt2" else (masked, False)
    template = PromptTemplate("film : {text} was {label} and music")
    classifier = FewShotClassifier(load(folder, "language"), load_tokenizer(folder), template, WORDS, max_tokens=40)
    for values, scores in zip(TEXTS, classifier.scores(TEXTS), strict=True):
        expected = likelihoods(folder, f"film : {values['text']} was", "and music", causal)
        assert scores.tolist() == pytest.approx(expected, abs=1e-4)


def test_examples_come_before_the_text_with_their_words(gpt2):
    tokenizer = load_tokenizer(gpt2)
    shots = [({"text": "music"}, "c"), ({"text": "the film"}, "a")]
    template = PromptTemplate("{text} was {label} .")
    classifier = FewShotClassifier(load(gpt2, "language"), tokenizer, template, WORDS, shots, separator=" , ")
    said = "music was awful . , the film was good . , "
    plain = FewShotClassifier(
        load(gpt2, "language"),
        tokenizer,
        PromptTemplate(said + "{text} was {label} ."),
        WORDS,
    )
    assert np.allclose(list(classifier.scores(TEXTS)), list(plain.scores(TEXTS)), atol=1e-6)


def test_calibration_subtracts_the_score_of_inputs_without_content(gpt2):
    classifier = FewShotClassifier(
        load(gpt2, "language"), load_tokenizer(gpt2), PromptTemplate("{text} was {label}"), WORDS
    )
    before = np.array(list(classifier.scores(TEXTS)))
    empty = np.array(list(classifier.scores([{"text": text} for text in ("N/A", "", "[MASK]")])))
    probabilities = np.exp(empty) / np.exp(empty).sum(axis=1, keepdims=True)
    classifier.calibrate(["text"])
    assert np.allclose(np.array(list(classifier.scores(TEXTS))), before - np.log(probabilities.mean(axis=0)), atol=1e-6)


def test_means_favour_words_of_several_tokens_less(gpt2):
    model, tokenizer, template = load(gpt2, "language"), load_tokenizer(gpt2), PromptTemplate("{text} was {label}")
    sums = np.array(list(FewShotClassifier(model, tokenizer, template, WORDS).scores(TEXTS)))
    means = np.array(list(FewShotClassifier(model, tokenizer, template, WORDS, mean=True).scores(TEXTS)))
    counts = [len(tokenizer.encode(word)) for word in WORDS.values()]
    assert counts == [1, 2, 1]
    assert np.allclose(means, sums / counts)


def test_prompts_that_are_too_long_lose_their_beginning_and_are_counted(gpt2):
    model, tokenizer = load(gpt2, "language"), load_tokenizer(gpt2)
    classifier = FewShotClassifier(model, tokenizer, PromptTemplate("{text} was {label}"), WORDS)
    long, end = "film " * 80, "music " * 70
    (one,), (other,) = (list(classifier.scores([{"text": text + end}])) for text in (long, "anna " + long))
    assert one.tolist() == other.tolist()
    assert classifier.num_truncated == 6


def test_shots_are_as_many_of_each_label_and_a_function_of_the_seed():
    labels = ["a", "b", "a", "c", "b", "a", "c", "b"] * 5
    chosen = choose_shots(labels, 3, seed=1)
    assert [labels[n] for n in chosen] == ["a", "b", "c"] * 3
    assert len(set(chosen)) == 9
    assert chosen == choose_shots(labels, 3, seed=1) != choose_shots(labels, 3, seed=2)
    with pytest.raises(ValueError, match="fewer than 11 examples of c; lower shots"):
        choose_shots(labels, 11, seed=1)


def test_the_command_writes_predictions_and_scores(gpt2, tmp_path, capsys):
    task = write_task("classification", tmp_path)
    given = [
        "--checkpoint",
        str(gpt2),
        "--input",
        task[5],
        "--template",
        "{text} was {label}",
        "--label_column",
        "target",
    ]
    given += ["--labels", "positive=good", "negative=bad"]
    output = tmp_path / "out.jsonl"
    more = ["--examples", task[3], "--shots", "1", "--calibrate", "true", "--output", str(output)]
    assert classify.main([*given, *more]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 40
    right = [json.loads(line)["target"] for line in Path(task[5]).read_text().splitlines()]
    accuracy = np.mean([line["predicted"] == label for line, label in zip(lines, right, strict=True)])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["accuracy"] == pytest.approx(accuracy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--template": "{text}"}, r"must have the slot \{label\} exactly once"),
        ({"--template": "x {label}"}, "has no slot for a text"),
        ({"--template": "{label} {text}"}, r"needs a text before \{label\}"),
        ({"--template": "{words} was {label}"}, "no column 'words'"),
        ({"--labels": '["positive=good"]'}, "give two or more"),
        ({"--labels": '["x=good", "y=bad"]'}, "line 1: the label '(posi|nega)tive' is none of 'x', 'y'"),
        ({"--shots": "2"}, "shots needs examples"),
    ],
)
def test_what_does_not_fit_is_refused(change, message, gpt2, tmp_path):
    task = write_task("classification", tmp_path)
    given = {
        "--checkpoint": str(gpt2),
        "--input": task[5],
        "--template": "{text} was {label}",
        "--label_column": "target",
    }
    given |= {"--labels": '["positive=good", "negative=bad"]'} | change
    with pytest.raises(BadInput, match=message):
        classify.main([word for pair in given.items() for word in pair])
