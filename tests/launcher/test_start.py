"""Where fine-tuning starts: with the weights of a model, or with first values in its shape."""

import shutil

import pytest
import torch

from launcher.finetuned import open_finetuned
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
            records = run(path, tmp_path / name / has, task, "--run.steps", 3, "--init.weights", has)
            found[name, has] = losses(records)
    assert found["first", "false"] == found["other", "false"]
    assert found["first", "true"] != found["other", "true"]
    assert found["first", "true"] != found["first", "false"]


def test_what_was_trained_on_first_values_is_opened_on_them_again(bert, tmp_path):
    """A head alone is saved without the body, which only the seed brings back; a full run saves all."""
    task, found = write_task("classification", tmp_path), {}
    for method in ("head", "full"):
        fixed = ["--run.steps", 1, "--run.seed", 3, "--optimizer.learning_rate", 1e-20, "--method.kind", method]
        run(bert, tmp_path / method, task, "--init.weights", "false", *fixed)
        found[method] = dict(open_finetuned(str(tmp_path / method / "runs/run"), CPU).model.named_parameters())
    for name, value in found["full"].items():
        assert torch.equal(found["head"][name], value), name
