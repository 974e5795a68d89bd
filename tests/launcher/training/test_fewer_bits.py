"""Runs with float8 and with moments in bf16, as a user starts them: switched on and off, exported, fine-tuned."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ingot.launcher import export, pretrain
from ingot.launcher.runtime.device import float8_problem
from ingot.parallel.checkpoint import read_manifest, read_tensor
from tests.launcher import finetune_runs
from tests.launcher.finetune_runs import last_scores
from tests.launcher.runs import records, write_config
from tests.launcher.tiny_models import write_task

FLOAT8 = ["--parallel.float8", "rowwise"]
BF16_STATES = ["--optimizer.state_dtype", "bf16"]


def train(config: Path, steps: int, *more: str) -> Path:
    """Trains the run `tiny` up to a step, and returns its folder."""
    given = ["--config", config, "--parallel.engine", "fsdp", "--run.steps", steps, "--data.validation", "[]", *more]
    assert pretrain.main([str(part) for part in given]) == 0
    return config.parent / "runs/tiny"


def test_a_run_goes_on_with_other_bits_and_its_weights_are_exported(corpus, tmp_path):
    run = train(write_config(tmp_path, corpus), 4, *FLOAT8)
    assert "float8: 14 of 14 linear layers" in (run / "log.txt").read_text()
    assert "torch, fp32, float8 rowwise on" in (run / "log.txt").read_text()
    train(tmp_path / "config.yaml", 6, *BF16_STATES)
    train(tmp_path / "config.yaml", 8, *BF16_STATES, *FLOAT8)
    train(tmp_path / "config.yaml", 9)
    assert [record["step"] for record in records(run)] == list(range(1, 10))
    plain = train(write_config(tmp_path / "plain", corpus), 9)
    losses, expected = ([record["loss"] for record in records(each)] for each in (run, plain))
    assert losses != expected
    assert losses == pytest.approx(expected, rel=5e-3)

    checkpoint = run / "checkpoints/step-00000009"
    manifest = read_manifest(checkpoint)
    assert {entry["dtype"] for entry in manifest["tensors"].values()} == {"float32"}
    assert export.main(["--checkpoint", str(run), "--output", str(tmp_path / "out"), "--dtype", "float32"]) == 0
    exported = load_file(tmp_path / "out/model.safetensors")
    for layer in ("self_attn.q_proj", "mlp.down_proj"):
        name = {"self_attn.q_proj": "attention.query", "mlp.down_proj": "mlp.down"}[layer]
        weight = read_tensor(checkpoint, manifest, f"model/blocks.0.{name}.weight")
        assert torch.equal(exported[f"model.layers.0.{layer}.weight"], weight)


@pytest.mark.parametrize("method", ["full", "lora", pytest.param("adalora", marks=pytest.mark.slow)])
def test_fine_tuning_learns_the_same(method, bert, tmp_path):
    """With lora the frozen matrices compute in float8, and what is added to them does not."""
    task = [*write_task("classification", tmp_path), "--method.kind", method, "--run.steps", 12]
    found = []
    for name, more in (("plain", []), ("fewer", ["--parallel.float8", "tensorwise", *BF16_STATES])):
        lines = finetune_runs.run(bert, tmp_path / name, task, *more)
        found.append([*finetune_runs.losses(lines), last_scores(lines)["loss"]])
    assert found[0] != found[1]
    assert found[0] == pytest.approx(found[1], rel=0.03)
    log = (tmp_path / "fewer/runs/run/log.txt").read_text()
    assert "float8: 12 of 12 linear layers; evaluations" in log
    assert "a CPU has no instructions for float8" in log


def test_a_device_without_float8_is_refused_with_the_reason(monkeypatch):
    def problem(capability: tuple[int, int], precision: str = "bf16", hip: str | None = None) -> str:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU X")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.version, "hip", hip)
        return float8_problem(torch.device("cuda"), precision)

    assert "compute capability 8.9 or more" in problem((8, 6))
    assert "this is GPU X; set it to none" in problem((8, 0))
    assert problem((8, 9)) == problem((9, 0)) == problem((10, 0)) == ""
    assert "NVIDIA" in problem((9, 4), hip="6.3")
    assert "needs parallel.precision bf16" in problem((9, 0), "fp32")
    assert float8_problem(torch.device("cpu"), "fp32") == ""
