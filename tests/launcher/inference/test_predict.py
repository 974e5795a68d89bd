"""Predictions: for one example from the command line, and for files without labels, of each kind of task."""

import json
from pathlib import Path

import pytest

from ingot.data.tokenizers.tokenizer import DEFAULT_CHAT_TEMPLATE
from ingot.launcher import predict
from ingot.launcher.runtime.exit_codes import BadInput
from tests.launcher.finetune_runs import run
from tests.launcher.tiny_models import LABELS, write_task

TEXTS = {
    "classification": ["the film was great"],
    "multi_label": ["anna was in rome"],
    "regression": ["good and bad"],
    "multiple_choice": ["the film was", "great music", "awful actors", "the story"],
    "token_classification": ["anna lives in rome"],
    "question_answering": ["where lives anna ?", "anna lives in rome with carl"],
    "instruction": ["the film was great"],
}


def unlabelled(path: Path, kind: str) -> Path:
    """The file without its labels."""
    if kind == "token_classification":
        other, text = path.with_suffix(".words"), path.read_text()
        other.write_text("\n".join(line.split(" ")[0] for line in text.splitlines()))
    elif kind == "question_answering":
        other, content = path.with_name("plain.json"), json.loads(path.read_text())
        for article in content["data"]:
            for paragraph in article["paragraphs"]:
                paragraph["qas"] = [{"id": each["id"], "question": each["question"]} for each in paragraph["qas"]]
        other.write_text(json.dumps(content))
    else:
        other = path.with_name("plain.jsonl")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        kept = [{k: v for k, v in record.items() if k not in (LABELS, "output")} for record in records]
        other.write_text("".join(json.dumps(record) + "\n" for record in kept))
    return other


@pytest.mark.parametrize("kind", TEXTS)
def test_labels_are_not_needed(kind, bert, gpt2, tmp_path, capsys):
    task = write_task(kind, tmp_path)
    if kind == "question_answering":
        task += ["--task.text_columns", "[question, context]"]
    run(gpt2 if kind == "instruction" else bert, tmp_path, task, "--run.steps", 2)
    given = ["--checkpoint", str(tmp_path / "runs/run")]
    predict.main([*given, "--input", task[5], "--output", str(tmp_path / "with.jsonl")])
    predict.main([*given, "--input", str(unlabelled(Path(task[5]), kind)), "--output", str(tmp_path / "without.jsonl")])
    predicted = {}
    for name in ("with", "without"):
        lines = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        predicted[name] = [line["predicted"] for line in lines]
    assert predicted["with"] == predicted["without"]
    capsys.readouterr()
    predict.main([*given, "--text", json.dumps(TEXTS[kind])])
    (line,) = map(json.loads, capsys.readouterr().out.splitlines())
    if kind == "classification":
        assert line["predicted"] == max(line["probabilities"], key=line["probabilities"].get)
        assert sum(line["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    elif kind == "multi_label":
        assert line["predicted"] == [name for name, share in line["probabilities"].items() if share > 0.5]
    elif kind == "multiple_choice":
        assert line["predicted"] == max(range(3), key=line["probabilities"].__getitem__)
    elif kind == "token_classification":
        assert len(line["predicted"]) == 4
    elif kind == "question_answering":
        assert line["predicted"] in TEXTS[kind][1]
    else:
        assert isinstance(line["predicted"], str if kind == "instruction" else list)


def test_a_score_asks_what_a_prediction_asks(gpt2, tmp_path, capsys):
    """Also of chats with several turns: the last answer is predicted, from all turns before it."""
    turns = [("user", "the film ?"), ("assistant", "good"), ("user", "the music ?"), ("assistant", "bad")]
    talks = [[{"role": role, "content": text} for role, text in turns[: 2 + 2 * (n % 2)]] for n in range(4)]
    long = [*talks[0][:1], talks[0][1] | {"content": "good " * 40}, *talks[1][2:]]
    files = {"with": [*talks, long], "without": [talk[:-1] for talk in [*talks, long]]}
    for name, chats in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in chats))
    task = ["--task.kind", "instruction", "--task.train", str(tmp_path / "with.jsonl")]
    task += ["--task.text_columns", "[messages]", "--task.max_length", "64"]
    # The answers are learned by heart, so that the right prompt is needed to give them.
    run(gpt2, tmp_path, task, "--run.steps", 100, "--optimizer.learning_rate", "1e-2", "--batch.global_size", 5)
    assert (tmp_path / "runs/run/tokenizer/chat_template.jinja").read_text() == DEFAULT_CHAT_TEMPLATE
    given = ["--checkpoint", str(tmp_path / "runs/run"), "--max_tokens", "20"]
    found = {}
    for name, more in (("with", []), ("without", []), ("with", ["--score", "true"])):
        capsys.readouterr()
        predict.main([*given, "--input", str(tmp_path / f"{name}.jsonl"), "--output", str(tmp_path / "o.jsonl"), *more])
        found[name, *more] = (tmp_path / "o.jsonl").read_text().replace("without.jsonl", "with.jsonl")
    said = capsys.readouterr()
    assert len(set(found.values())) == 1
    lines = [json.loads(line) for line in found["with",].splitlines()]
    assert [line["predicted"].strip() for line in lines[:4]] == ["good", "bad", "good", "bad"]
    assert {line["finish"] for line in lines[:4]} == {"eos"}
    assert json.loads(said.out.splitlines()[0])["exact_match"] >= 0.8
    # The long chat has lost its beginning, which is said, and the others are as without it.
    assert "note: 1 of 5 prompts are longer than the 63 tokens that the model can read" in said.err
    assert "with.jsonl, line 5 (" in said.err
    with pytest.raises(BadInput, match="line 1: the last message is of the role 'user', and a score needs an answer"):
        predict.main([*given, "--input", str(tmp_path / "without.jsonl"), "--score", "true"])


def test_what_does_not_fit_the_task_is_refused_or_said(bert, tmp_path, capsys):
    run(bert, tmp_path, write_task("classification", tmp_path), "--run.steps", 1)
    for more, message in (
        ([], "give either input, a file, or text"),
        (["--text", '["one", "two"]'], "text has 2 values, and the task reads text; give one for each"),
        (["--text", "x", "--score", "true"], "score needs an input with labels"),
        (["--text", "x", "--output", str(tmp_path / "no/x")], "the folder of output .* does not exist"),
    ):
        with pytest.raises(BadInput, match=message):
            predict.main(["--checkpoint", str(tmp_path / "runs/run"), *more])
    predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--text", "film " * 60])
    said = "note: 1 examples are longer than task.max_length 48, and lose their end"
    assert said in capsys.readouterr().err
