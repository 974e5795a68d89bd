"""Predictions: for one example from the command line, and for files without labels, of each kind of task."""

import json
from pathlib import Path

import pytest

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


def test_what_does_not_fit_the_task_is_refused(bert, tmp_path):
    run(bert, tmp_path, write_task("classification", tmp_path), "--run.steps", 1)
    for more, message in (
        ([], "give either input, a file, or text"),
        (["--text", '["one", "two"]'], "text has 2 values, and the task reads text; give one for each"),
        (["--text", "x", "--score", "true"], "score needs an input with labels"),
        (["--text", "x", "--output", str(tmp_path / "no/x")], "the folder of output .* does not exist"),
    ):
        with pytest.raises(BadInput, match=message):
            predict.main(["--checkpoint", str(tmp_path / "runs/run"), *more])
