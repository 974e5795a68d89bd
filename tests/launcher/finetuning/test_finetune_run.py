"""Fine-tuning as a user starts it: each kind of task and each method learns, is saved, goes on, and is opened again."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ingot.launcher import export, finetune, predict
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.launcher.tasks.classification import Classification
from ingot.launcher.tasks.registry import task_kind
from tests.launcher.finetune_runs import BASE, CPU, last_scores, lines, losses, run
from tests.launcher.runs import launch
from tests.launcher.tiny_models import write_task

CHANCE = {
    "classification": 0.65,
    "multiple_choice": 0.5,
    "multi_label": 0.75,
    "regression": 0.5,
    "token_classification": 0.5,
    "question_answering": 50,
}


@pytest.mark.parametrize("kind", [*CHANCE, "instruction"])
def test_each_kind_of_task_is_learned_and_predicted(kind, bert, gpt2, tmp_path, capsys):
    task = write_task(kind, tmp_path, 240)
    found = last_scores(
        run(
            gpt2 if kind == "instruction" else bert, tmp_path, task, "--task.epochs", 24 if kind == "instruction" else 8
        )
    )
    if kind == "instruction":
        assert found["loss"] < 0.3  # of two tokens: good or bad, and the end; by chance it is 0.35
    else:
        assert found[task_kind(kind).metrics[0]] > CHANCE[kind]
    assert set(task_kind(kind).metrics) == found.keys() - {"kind", "step", "seconds", "time"}
    capsys.readouterr()
    predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--input", task[5], "--score", "true"])
    scored = json.loads(capsys.readouterr().out.splitlines()[0])
    for name, value in scored.items():
        if name in found:
            assert value == pytest.approx(found[name], abs=1e-6), name
    if kind == "instruction":
        assert scored["exact_match"] > 0.8


@pytest.mark.parametrize("context", [0, 8])
def test_a_word_is_known_by_the_sentence_before_it(context, bert, tmp_path, capsys):
    """Who did what the document said first: without context that is a guess."""
    lines = [f"-DOCSTART- O\n\n{word} O\n\ncarl B-{word.upper()}\n" for word in ("good", "bad")]
    (tmp_path / "train.conll").write_text("\n".join(lines * 60))
    path = str(tmp_path / "train.conll")
    task = [
        "--task.kind",
        "token_classification",
        "--task.train",
        path,
        "--task.validation",
        path,
        "--task.document_context",
        context,
    ]
    found = last_scores(run(bert, tmp_path, task, "--task.epochs", 4))
    assert found["f1"] == 1 if context else found["f1"] <= 0.5
    capsys.readouterr()
    predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--input", path, "--score", "true"])
    assert json.loads(capsys.readouterr().out.splitlines()[0])["f1"] == pytest.approx(found["f1"])


FIVE_TOKENS = ["--method.num_virtual_tokens", "5"]
RANKS = ["--method.r", "2", "--method.init_r", "4"]
METHODS = {
    "full": [],
    "layer decay": ["--method.layer_decay", "0.7"],
    "unfreezing": ["--method.unfreeze_steps", "5"],
    "linear probe": ["--method.kind", "linear_probe", "--optimizer.learning_rate", "3e-2"],
    "lora": ["--method.kind", "lora", "--method.target_modules", "[query, key, value, output, up, down]"],
    "adalora": ["--method.kind", "adalora", *RANKS, "--optimizer.learning_rate", "3e-2"],
    "ia3": ["--method.kind", "ia3", "--optimizer.learning_rate", "3e-2"],
    "adapters": ["--method.kind", "adapters"],
    "prompt tuning": ["--method.kind", "prompt_tuning", *FIVE_TOKENS, "--optimizer.learning_rate", "3e-2"],
    "p-tuning": ["--method.kind", "p_tuning", *FIVE_TOKENS, "--optimizer.learning_rate", "1e-2"],
    "prefix tuning": ["--method.kind", "prefix_tuning", *FIVE_TOKENS, "--optimizer.learning_rate", "3e-2"],
    "fgm": ["--method.adversarial", "fgm", "--method.adversarial_norm", "0.1"],
    "freelb": ["--method.adversarial", "freelb", "--method.adversarial_norm", "0.1"],
    "r-drop": ["--method.r_drop", "1.0", "--task.dropout", "0.1"],
    "label smoothing": ["--loss.label_smoothing", "0.1"],
}
ADDED = ("linear probe", "adalora", "ia3", "adapters", "prompt tuning", "p-tuning", "prefix tuning")
"""Methods that leave the body as it is and need one that knows the task; so does LoRA, which learns it anyway."""


@pytest.mark.parametrize("method", METHODS)
def test_each_method_learns_saves_and_opens(method, bert, knowing, tmp_path, capsys):
    task = write_task("classification", tmp_path, 240)
    if method in ADDED:
        bert = knowing
        for path in (task[3], task[5]):
            Path(path).write_text(Path(path).read_text().replace("positive", "yes").replace("negative", "no"))
    found = last_scores(run(bert, tmp_path, task, "--task.epochs", 8, *METHODS[method]))
    assert found["accuracy"] > 0.65
    capsys.readouterr()
    predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--input", task[5], "--score", "true"])
    scored = json.loads(capsys.readouterr().out.splitlines()[0])
    assert scored["accuracy"] == pytest.approx(found["accuracy"])
    model = open_finetuned(str(tmp_path / "runs/run"), CPU).model
    (before,) = (value for name, value in values_of(bert).items() if name.endswith("word_embeddings.weight"))
    changed = not torch.equal(model.embedding.token.weight, before)
    assert changed == (method not in ("lora", *ADDED))


def values_of(folder: Path) -> dict:
    from safetensors.torch import load_file

    return load_file(str(folder / "model.safetensors"))


def test_a_step_learns_what_transformers_learns_from_the_same_padded_batch(bert, tmp_path):
    """Losses of the first steps beside a plain loop of transformers on the same examples, padded."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

    from ingot.data.tasks.reader import TaskReader
    from ingot.data.tasks.sequence_classification import read_classification
    from ingot.data.tasks.task_data import TaskSettings
    from ingot.data.tokenizers.load import load_tokenizer

    task = write_task("classification", tmp_path, 120)
    options = ["--optimizer.max_grad_norm", "1.0", "--optimizer.weight_decay", "0.01", "--run.steps", "12"]
    ours = losses(run(bert, tmp_path, task, *options, "--optimizer.learning_rate", "1e-3"))
    data = read_classification(task[3], TaskSettings(["text"], "target"), load_tokenizer(bert))
    reader = TaskReader(data.examples, global_size=16, micro_tokens=256, labels="targets", seed=1234)
    model = AutoModelForSequenceClassification.from_pretrained(bert, num_labels=2)
    first = open_first_head(bert)
    with torch.no_grad():
        model.classifier.weight.copy_(first["head.classifier.weight"])
        model.classifier.bias.copy_(first["head.classifier.bias"])
    tokenizer = AutoTokenizer.from_pretrained(bert)
    decaying = [p for n, p in model.named_parameters() if p.ndim >= 2]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2]
    groups = [{"params": decaying, "weight_decay": 0.01}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.999), eps=1e-8)
    scheduler, theirs = get_linear_schedule_with_warmup(optimizer, 0, 12), []
    for step in range(12):
        numbers = reader.order(np.arange(16 * step, 16 * (step + 1)))
        texts = [data.records[number].values["text"] for number in numbers]
        labels = torch.tensor([int(data.examples[number].target) for number in numbers])
        loss = model(**tokenizer(texts, return_tensors="pt", padding=True), labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
        theirs.append(loss.item())
    assert ours == pytest.approx(theirs, abs=1e-4)


def open_first_head(bert: Path) -> dict:
    from ingot.launcher.loading.base_model import open_base_model

    base = open_base_model(str(bert), Classification(), ["negative", "positive"], seed=1234)
    return {
        name: base.part(name, (0,) * len(shape), shape)
        for name, shape in {n: tuple(p.shape) for n, p in base.model.named_parameters()}.items()
        if name.startswith("head.classifier")
    }


@pytest.mark.parametrize("method", ["full", "lora"])
def test_ten_steps_and_ten_more_are_twenty(method, bert, tmp_path):
    task = write_task("classification", tmp_path, 120)
    options = [*METHODS[method], "--task.dropout", "0.1", "--run.steps", "20", "--run.save_every", "10"]
    options += ["--run.eval_every", "5"]
    straight = run(bert, tmp_path / "a", task, *options)
    again = tmp_path / "b"
    run(bert, again, task, *options)
    shutil.rmtree(again / "runs/run/checkpoints/step-00000020")
    (again / "runs/run/metrics.jsonl").unlink()
    resumed = run(bert, again, task, *options)
    assert losses(resumed) == losses(straight)[10:]
    assert (again / "runs/run/best.json").read_text() == (tmp_path / "a/runs/run/best.json").read_text()


ZERO = ["--parallel.engine", "zero", "--parallel.zero_stage"]
LAYOUTS = [
    ("full", "deepspeed 2", [*ZERO, "3"]),
    pytest.param("full", "deepspeed 2", [*ZERO, "2"], marks=pytest.mark.slow),
    pytest.param("full", "torchrun 2", ["--parallel.engine", "fsdp"], marks=pytest.mark.slow),
    ("full", "torchrun 2", ["--parallel.engine", "fsdp", "--parallel.tensor", "2"]),
    ("lora", "torchrun 2", ["--parallel.engine", "fsdp"]),
    ("adalora", "deepspeed 2", [*ZERO, "3"]),
    pytest.param("adalora", "torchrun 2", ["--parallel.engine", "fsdp"], marks=pytest.mark.slow),
    pytest.param("lora", "deepspeed 2", [*ZERO, "1"], marks=pytest.mark.slow),
    pytest.param("lora", "deepspeed 2", [*ZERO, "3"], marks=pytest.mark.slow),
]


@pytest.mark.distributed
@pytest.mark.parametrize(("method", "launcher", "layout"), LAYOUTS)
def test_a_layout_trains_the_same_and_one_process_goes_on(method, launcher, layout, bert, tmp_path):
    task = write_task("classification", tmp_path, 120)
    options = [*METHODS[method], "--run.steps", "8", "--run.eval_every", "8", "--run.save_every", "4"]
    alone = run(bert, tmp_path / "alone", task, *options)
    folder = tmp_path / "together"
    given = ["--init.model", bert, "--run.dir", folder / "runs", *BASE, *task, *options, *layout]
    launch(launcher, *given, script="finetune")
    found = lines(folder)
    assert losses(found) == pytest.approx(losses(alone), rel=1e-4)
    assert last_scores(found)["accuracy"] == last_scores(alone)["accuracy"]
    prints = [[r["batch_fingerprint"] for r in each if r["kind"] == "train"] for each in (found, alone)]
    assert prints[0] == prints[1]
    # What this layout saved half way, one process goes on with.
    half = folder / "runs/run/checkpoints/step-00000004"
    on = run(bert, folder / "on", task, *options, "--run.resume", half)
    assert losses(on) == pytest.approx(losses(alone)[4:], rel=1e-4)


def test_an_own_checkpoint_is_a_start(corpus, tmp_path):
    """Of a pretraining run: the body goes on, and a second fine-tuning goes on from the first."""
    from ingot.launcher import pretrain
    from tests.launcher.runs import write_config

    config = write_config(tmp_path, corpus, objective="mlm")
    assert pretrain.main(["--config", str(config), "--run.steps", "3", "--parallel.engine", "fsdp"]) == 0
    task = write_task("classification", tmp_path)
    records = run(tmp_path / "runs/tiny", tmp_path / "f", [*task, "--task.max_length", "64"], "--run.steps", "3")
    assert losses(records)
    again = run(tmp_path / "f/runs/run", tmp_path / "g", [*task, "--task.max_length", "64"], "--run.steps", "3")
    assert losses(again)[0] < losses(records)[0]


def test_patience_ends_a_run_and_the_best_stays(bert, tmp_path):
    task = write_task("classification", tmp_path)
    options = ["--run.steps", "60", "--run.eval_every", "2", "--task.early_stopping_patience", "3"]
    records = run(bert, tmp_path, task, *options, "--optimizer.learning_rate", "1e-9")
    scores = [record for record in records if record["kind"] == "eval"]
    assert [record["step"] for record in scores] == [2, 4, 6, 8]
    assert json.loads((tmp_path / "runs/run/best.json").read_text())["step"] == 2
    assert [path.name for path in (tmp_path / "runs/run/best").glob("step-*")] == ["step-00000002"]
    again = run(bert, tmp_path, task, *options, "--optimizer.learning_rate", "1e-9")  # it has ended
    assert len(losses(again)) == 8
    assert sum("has not improved since step 2" in record.get("event", "") for record in again) == 2  # once a start
    more = run(bert, tmp_path, task, *options[:-1], "4", "--optimizer.learning_rate", "1e-9")
    assert len(losses(more)) == 10


@pytest.mark.parametrize("method", ["lora", "linear probe"])
def test_another_base_model_in_the_same_place_is_refused(method, bert, tmp_path, capsys):
    shutil.copytree(bert, tmp_path / "base")
    task = write_task("classification", tmp_path)
    run(tmp_path / "base", tmp_path, task, "--run.steps", "4", *METHODS[method])
    path = tmp_path / "base/model.safetensors"
    values = values_of(tmp_path / "base")
    name = next(name for name in values if name.endswith("layer.0.output.dense.bias"))
    values[name][0] += 1e-3
    save_file(values, path, {"format": "pt"})
    said = "was trained on other frozen parameters: model/blocks.0"
    with pytest.raises(BadInput, match=said):
        run(tmp_path / "base", tmp_path, task, "--run.steps", "6", *METHODS[method])
    with pytest.raises(BadInput, match=said):
        predict.main(["--checkpoint", str(tmp_path / "runs/run"), "--input", task[5]])
    with pytest.raises(BadInput, match=said):
        export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_several_seeds_give_mean_and_deviation(bert, tmp_path, capsys):
    task = write_task("classification", tmp_path)
    given = ["--init.model", bert, "--run.dir", tmp_path / "runs", *BASE, *task]
    finetune.main([str(part) for part in [*given, "--run.steps", "3", "--task.seeds", "[1, 2, 3]"]])
    together = json.loads((tmp_path / "runs/run-seeds.json").read_text())
    values = [json.loads((tmp_path / f"runs/run-seed{seed}/best.json").read_text())["loss"] for seed in (1, 2, 3)]
    assert together["loss"]["values"] == values
    assert len(set(values)) == 3
    assert "accuracy: " in capsys.readouterr().out


BAD_INPUTS = {
    "an unknown label": (["--task.labels", "[positive, neutral]"], "label 'negative' is none of 'positive', 'neutral'"),
    "a missing column": (["--task.text_columns", "[sentence]"], "no column 'sentence'; there are: 'text', 'target'"),
    "a column that is empty": (None, "line 2: 'text' is empty"),
    "too long, refused": (["--task.overlong", "refuse", "--task.max_length", "6"], "raise task.max_length"),
    "longer than the model": (["--task.max_length", "100"], "the model's 64 positions"),
    "longer than a row": (["--batch.micro_tokens", "5"], "batch.micro_tokens is 5"),
    "no such score": (
        ["--task.best_metric", "bleu"],
        "task.best_metric is bleu; classification has accuracy, loss",
    ),
    "an end before its beginning": (
        ["--method.sparsity_begin", "10", "--method.sparsity_end", "2"],
        "method.sparsity_begin is 10; it must be below method.sparsity_end 2",
    ),
    "a seed twice": (["--task.seeds", "[1, 1]"], r"task.seeds \[1, 1\] has one twice"),
    "a model that reads backwards too": (
        ["--task.kind", "instruction", "--task.text_columns", "[text, target]"],
        "left to right",
    ),
    "no such target": (
        ["--method.kind", "lora", "--method.target_modules", "[gate]"],
        "method.target_modules has gate",
    ),
    "a template without its slot": (["--task.kind", "instruction", "--task.template", "x"], "slot {input}"),
    "no start": (["--init.model", "/nowhere/at/all"], "/nowhere/at/all does not exist"),
}


@pytest.mark.parametrize("what", BAD_INPUTS)
def test_bad_input_gets_one_message_and_no_run_folder(what, bert, tmp_path):
    task = write_task("classification", tmp_path, 30)
    options, message = BAD_INPUTS[what]
    if options is None:
        options = []
        content = Path(task[3]).read_text().splitlines()
        content[1] = json.dumps({"text": " ", "target": "positive"})
        Path(task[3]).write_text("\n".join(content))
    with pytest.raises(BadInput, match=message):
        run(bert, tmp_path, task, *options)
    assert not (tmp_path / "runs").exists()


def test_a_fine_tuned_gpt_writes_and_others_are_refused(gpt2, bert, tmp_path, capsys):
    from ingot.launcher import generate

    for method in ("full", "lora"):
        task = write_task("instruction", tmp_path / method)
        run(gpt2, tmp_path / method, task, "--run.steps", "3", *METHODS[method])
        given = ["--checkpoint", str(tmp_path / method / "runs/run"), "--prompt", "the film", "--max_tokens", "3"]
        assert generate.main(given) == 0
        assert capsys.readouterr().out.startswith("the film")
    task = write_task("classification", tmp_path / "other")
    run(bert, tmp_path / "other", task, "--run.steps", "3")
    with pytest.raises(BadInput, match=r"a model for classification; use launcher/predict.py"):
        generate.main(["--checkpoint", str(tmp_path / "other/runs/run"), "--prompt", "x"])
