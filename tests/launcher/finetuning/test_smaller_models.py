"""Smaller models afterwards: distillation, pruning and int8."""

import json
import shutil
from pathlib import Path

import pytest

from ingot.launcher import predict
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.runtime.exit_codes import BadInput
from tests.launcher.finetune_runs import CPU, last_scores, losses, run
from tests.launcher.tiny_models import write_task


@pytest.mark.parametrize("other", ["a run", "a released model"])
def test_a_model_learns_from_a_teacher(other, bert, knowing, tmp_path):
    """Without labels that mean anything, what it learns can only come from the teacher."""
    task = write_task("classification", tmp_path, 240)
    teacher = knowing
    if other == "a run":
        run(bert, tmp_path / "teacher", task, "--task.epochs", 8)
        teacher = tmp_path / "teacher/runs/run"
    lines_of = Path(task[3]).read_text().splitlines()
    shuffled = [json.loads(line) | {"target": ("positive", "negative")[n % 2]} for n, line in enumerate(lines_of)]
    Path(task[3]).write_text("".join(json.dumps(record) + "\n" for record in shuffled))
    options = ["--task.epochs", 8, "--distillation.teacher", teacher, "--distillation.weight", "1"]
    options += ["--distillation.hidden_weight", "1"]
    assert last_scores(run(bert, tmp_path, task, *options))["accuracy"] > 0.8


def test_a_teacher_of_other_labels_is_refused(bert, knowing, tmp_path):
    task = write_task("classification", tmp_path)
    for path in (task[3], task[5]):
        Path(path).write_text(Path(path).read_text().replace("positive", "yes"))
    with pytest.raises(BadInput, match=r"the teacher .* knows the labels negative, positive"):
        run(bert, tmp_path, task, "--distillation.teacher", knowing)


def test_pruning_reaches_its_share_and_resumes_alike(bert, tmp_path):
    task = write_task("classification", tmp_path, 240)
    options = [
        "--method.sparsity",
        "0.6",
        "--method.sparsity_every",
        "10",
        "--run.steps",
        "100",
        "--run.save_every",
        "50",
    ]
    records = run(bert, tmp_path, task, *options)
    assert last_scores(records)["accuracy"] > 0.65
    model = open_finetuned(str(tmp_path / "runs/run"), CPU).model
    for name, parameter in model.named_parameters():
        zeros = float((parameter == 0).float().mean())
        if name.startswith("blocks.") and parameter.ndim == 2:
            assert zeros == pytest.approx(0.6, abs=0.01), name
    shutil.rmtree(tmp_path / "runs/run/checkpoints/step-00000100")
    (tmp_path / "runs/run/metrics.jsonl").unlink()
    assert losses(run(bert, tmp_path, task, *options)) == losses(records)[50:]


def test_adalora_ends_with_its_budget_of_ranks_and_resumes_alike(bert, tmp_path):
    task = write_task("classification", tmp_path, 240)
    options = ["--method.kind", "adalora", "--method.r", "2", "--method.init_r", "6", "--run.steps", "60"]
    options += ["--run.save_every", "30", "--method.sparsity_every", "10"]
    records = run(bert, tmp_path, task, *options)
    model = open_finetuned(str(tmp_path / "runs/run"), CPU).model
    ranks = [int((p != 0).sum()) for name, p in model.named_parameters() if ".lora_E." in name]
    assert len(ranks) == 2 * 6
    assert sum(ranks) == 2 * len(ranks)
    assert len(set(ranks)) > 1  # some layers keep more than others
    shutil.rmtree(tmp_path / "runs/run/checkpoints/step-00000060")
    (tmp_path / "runs/run/metrics.jsonl").unlink()
    assert losses(run(bert, tmp_path, task, *options)) == losses(records)[30:]


@pytest.mark.parametrize("how", ["weights", "dynamic"])
def test_int8_scores_nearly_the_same_and_is_smaller(how, knowing, bert, tmp_path, capsys):
    task = write_task("classification", tmp_path, 240)
    run(bert, tmp_path, task, "--task.epochs", 8)
    found = {}
    for int8 in ("none", how):
        capsys.readouterr()
        given = ["--checkpoint", str(tmp_path / "runs/run"), "--input", task[5], "--score", "true", "--int8", int8]
        predict.main(given)
        found[int8] = json.loads(capsys.readouterr().out.splitlines()[0])
    assert found[how]["accuracy"] >= found["none"]["accuracy"] - 0.05
    assert found[how]["model_bytes"] < 0.75 * found["none"]["model_bytes"]
