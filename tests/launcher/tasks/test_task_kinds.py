"""Each kind of task is one class: a new one needs nothing else, and no other code asks for a kind by its name."""

import ast
import json
from pathlib import Path

import pytest

from ingot.launcher import export, finetune, predict
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.launcher.tasks.registry import DEFAULT, TASK_KINDS, register, task_kind
from tests.launcher.finetune_runs import last_scores, run
from tests.launcher.tasks.toy_kind import Parity
from tests.launcher.tiny_models import write_task

ROOT = Path(__file__).resolve().parents[3]
MAY_NAME_KINDS = ("launcher/tasks/", "launcher/config/aliases.py")
"""The kinds themselves, and the table of their old names."""
LOSSES = {"regression"}
"""Names of losses in model/, as in transformers' problem_type."""


def named(path: Path) -> set[str]:
    """The kinds that a file has as a string of their own."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.value for node in nodes if isinstance(node, ast.Constant) and node.value in TASK_KINDS}


def test_no_code_outside_asks_for_a_kind_by_its_name():
    for room in ("launcher", "data", "model", "parallel", "ingot"):
        for path in (ROOT / room).rglob("*.py"):
            name = str(path.relative_to(ROOT))
            if not name.startswith(MAY_NAME_KINDS):
                assert named(path) <= (LOSSES if room == "model" else set()), name


def test_a_name_of_a_kind_is_noticed(tmp_path):
    (tmp_path / "one.py").write_text('if kind == "token_classification":\n    pass\n')
    assert named(tmp_path / "one.py") == {"token_classification"}


@pytest.mark.parametrize("kind", TASK_KINDS.values(), ids=TASK_KINDS)
def test_a_kind_says_all_that_it_must(kind):
    assert "loss" in kind.metrics
    assert "loss" in kind.lower_is_better
    assert set(kind.lower_is_better) <= set(kind.metrics)
    assert kind.text_columns
    assert kind.summary
    assert kind.transformers_class.startswith("AutoModelFor")
    if kind.adversarial:  # which compares the logits of whole texts
        assert kind.head is not None
        assert kind.head.kind == "sequence"
    if kind.head is None:
        assert kind.attention == "causal"


@pytest.mark.parametrize("kind", TASK_KINDS.values(), ids=TASK_KINDS)
def test_an_exported_model_is_of_the_class_that_the_kind_names(kind, bert, gpt2, tmp_path):
    import transformers

    task = write_task(kind.name, tmp_path, 30)
    run(gpt2 if kind.attention == "causal" else bert, tmp_path, task, "--run.steps", 1)
    export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
    model, loading = getattr(transformers, kind.transformers_class).from_pretrained(
        tmp_path / "out", output_loading_info=True
    )
    assert not any(loading.values()), loading
    assert json.loads((tmp_path / "out/config.json").read_text())["architectures"] == [type(model).__name__]


def test_an_unknown_kind_is_refused_with_the_nearest(bert, tmp_path):
    with pytest.raises(BadInput, match=r"task.kind is regresion; .* did you mean regression\?"):
        finetune.main(["--init.model", str(bert), "--task.train", "x.tsv", "--task.kind", "regresion"])
    assert task_kind(DEFAULT) is next(iter(TASK_KINDS.values()))


def test_help_lists_every_kind_with_its_columns_and_scores(capsys):
    with pytest.raises(SystemExit):
        finetune.main(["--help"])
    text = " ".join(capsys.readouterr().out.split("options:")[0].split())
    for kind in TASK_KINDS.values():
        listed = f"{kind.name}: {kind.summary} columns: {', '.join(kind.text_columns)}"
        assert f"{listed}; scores: {', '.join(kind.metrics)}" in text


@pytest.fixture
def parity():
    register(Parity)
    yield
    del TASK_KINDS[Parity.name]


def test_a_new_kind_is_one_file_and_one_line(parity, bert, tmp_path, capsys):
    path = tmp_path / "data.jsonl"
    texts = ["the film", "the film was", "music", "anna lives in rome"] * 4
    lines = [json.dumps({"sentence": text, "label": "odd" if len(text.split()) % 2 else "even"}) for text in texts]
    path.write_text("\n".join(lines))
    task = ["--task.kind", "parity", "--task.train", str(path), "--task.validation", str(path)]
    found = last_scores(run(bert, tmp_path, task, "--run.steps", 2, "--run.eval_every", 1))
    assert found.keys() >= {"loss", "errors"}
    predictions = [json.loads(line) for line in (tmp_path / "runs/run/predictions.jsonl").read_text().splitlines()]
    assert [line["true"] for line in predictions] == ["even", "odd", "odd", "even"] * 4
    best = json.loads((tmp_path / "runs/run/best.json").read_text())
    assert best["errors"] == sum(line["predicted"] != line["true"] for line in predictions)
    capsys.readouterr()
    given = ["--checkpoint", str(tmp_path / "runs/run")]
    predict.main([*given, "--input", str(path), "--score", "true"])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["errors"] == best["errors"]
    predict.main([*given, "--text", '["the film"]'])
    assert json.loads(capsys.readouterr().out)["predicted"] in ("odd", "even")
    with pytest.raises(BadInput, match=r"loss.label_smoothing is for .*; set it to 0 for parity"):
        run(bert, tmp_path / "refused", task, "--loss.label_smoothing", "0.1")
