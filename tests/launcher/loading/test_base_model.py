"""Where fine-tuning starts: with the weights of a model, or with first values in its shape."""

import shutil

import pytest
import torch

from ingot.launcher import export
from ingot.launcher.loading.finetuned_model import open_finetuned
from ingot.launcher.runtime.exit_codes import BadInput
from tests.launcher.finetune_runs import CPU, losses, run
from tests.launcher.tiny_models import write_task


@pytest.mark.parametrize("start", ["bert", "gpt2"])
def test_a_start_without_weights_takes_the_shape_alone(start, request, tmp_path):
    from safetensors.torch import load_file, save_file

    first = request.getfixturevalue(start)
    other = shutil.copytree(first, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    save_file({name: value + 0.1 for name, value in weights.items()}, other / "model.safetensors", {"format": "pt"})
    task = write_task("classification", tmp_path)
    found = {}
    for name, path in (("first", first), ("other", other)):
        for has in ("true", "false"):
            records = run(path, tmp_path / name / has, task, "--run.steps", 3, "--init.pretrained", has)
            found[name, has] = losses(records)
    assert found["first", "false"] == found["other", "false"]
    assert found["first", "true"] != found["other", "true"]
    assert found["first", "true"] != found["first", "false"]


def test_what_was_trained_on_first_values_is_opened_on_them_again(bert, tmp_path):
    """A head alone is saved without the body, which only the seed brings back; a full run saves all."""
    task, found = write_task("classification", tmp_path), {}
    for method in ("linear_probe", "full"):
        fixed = ["--run.steps", 1, "--run.seed", 3, "--optimizer.learning_rate", 1e-20, "--method.kind", method]
        run(bert, tmp_path / method, task, "--init.pretrained", "false", *fixed)
        found[method] = dict(open_finetuned(str(tmp_path / method / "runs/run"), CPU).model.named_parameters())
    for name, value in found["full"].items():
        torch.testing.assert_close(found["linear_probe"][name], value, atol=1e-15, rtol=0, msg=name)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_start_keeps_the_layers_that_it_is_told(method, bert, tmp_path):
    """Opened again, and exported to transformers: its own model of these layers has the same hidden states."""
    from transformers import AutoModelForSequenceClassification, BertModel

    task = write_task("classification", tmp_path)
    kept = ["--init.keep_layers", "[1]", "--run.steps", 1, "--optimizer.learning_rate", 1e-20, "--method.kind", method]
    run(bert, tmp_path, task, *kept)
    found = open_finetuned(str(tmp_path / "runs/run"), CPU)
    theirs = BertModel.from_pretrained(bert).eval()
    theirs.encoder.layer = theirs.encoder.layer[1:]
    ids = torch.tensor([[2, 5, 6, 7, 3]])
    with torch.no_grad():
        expected = theirs(ids).last_hidden_state
        torch.testing.assert_close(found.model.hidden_states(ids), expected, atol=1e-5, rtol=0)
        logits = found.model(ids)
    export.main(["--checkpoint", str(tmp_path / "runs/run"), "--output", str(tmp_path / "out")])
    exported = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert exported.config.num_hidden_layers == 1
    with torch.no_grad():
        torch.testing.assert_close(exported(ids).logits, logits, atol=1e-5, rtol=0)


def test_layers_that_are_not_there_are_refused(bert, tmp_path):
    with pytest.raises(BadInput, match=r"layers \[0, 2\] must be increasing numbers from 0 to 1"):
        run(bert, tmp_path, write_task("classification", tmp_path), "--init.keep_layers", "[0, 2]")
    assert not (tmp_path / "runs").exists()
