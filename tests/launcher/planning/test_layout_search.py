"""The plan against what ranks really hold, and the commands that print it."""

import subprocess
import sys

import pytest

from ingot.parallel import mesh as meshes
from tests.launcher.runs import ROOT, environment
from tests.layouts import Layout
from tests.memory_use import measure
from tests.ranks import run_ranks

MEASURED = [
    ("gpt2", Layout("zero-1", 1, 2, "bf16"), {}),
    ("llama", Layout("zero-2", 1, 1, "bf16"), {}),
    ("bert", Layout("zero-3", 1, 1, "bf16"), {}),
    ("gpt2", Layout("zero-1", 2, 1, "bf16"), {"activation_checkpointing": "selective"}),
    ("llama", Layout("zero-1", 2, 1, "bf16"), {"activation_checkpointing": "full"}),
    (
        "gpt2",
        Layout("zero-1", 1, 1, "bf16"),
        {"activation_checkpointing": "selective", "activation_checkpointing_every": 2},
    ),
    ("llama", Layout("replicate"), {"float8": "tensorwise", "state_dtype": "bf16"}),
    ("gpt2", Layout("replicate", 2), {"float8": "rowwise", "activation_checkpointing": "selective"}),
    ("bert", Layout("fsdp2"), {"state_dtype": "bf16"}),
]
LARGE = """
model: {num_hidden_layers: 80, hidden_size: 8192, num_attention_heads: 64, num_key_value_heads: 8,
  intermediate_size: 28672, vocab_size: 128256, max_position_embeddings: 8192, norm: rmsnorm, gated_mlp: true,
  activation: silu, positions: rotary, bias: false, tie_word_embeddings: false}
data: {sequence_length: 8192, train: [{path: corpus}]}
batch: {global_size: 1024, micro_size: 1}
parallel: {engine: fsdp, tensor: 8, activation_checkpointing: selective}
"""


def measure_all(cases: list) -> list[dict[str, float]]:
    world = meshes.start("cpu")
    found = [measure(model, layout, world, **parallel) for model, layout, parallel in cases]
    meshes.stop()
    return found


@pytest.mark.distributed
def test_ranks_hold_what_the_plan_says():
    for rank in run_ranks(measure_all, 2, MEASURED):
        for case, found in zip(MEASURED, rank, strict=True):
            assert found["states"] == pytest.approx(found["planned states"], rel=0.05), case
            if case[1].engine in ("zero-1", "replicate"):  # elsewhere other things come and go during a forward pass
                assert found["activations"] == pytest.approx(found["planned activations"], rel=0.05), case


def command(tmp_path, script: str, *arguments: str) -> subprocess.CompletedProcess:
    (tmp_path / "large.yaml").write_text(LARGE)
    line = [sys.executable, str(ROOT / f"launcher/{script}.py"), "--config", str(tmp_path / "large.yaml"), *arguments]
    return subprocess.run(line, env=environment(), cwd=tmp_path, capture_output=True, text=True)


def test_a_dry_run_builds_for_more_ranks_than_there_are(tmp_path):
    dry = ["--run.dry_run", "true", "--run.dry_run_ranks", "1024", "--run.device_memory_gb"]
    result = command(tmp_path, "pretrain", *dry, "80")
    assert result.returncode == 0, result.stderr
    assert "data_replicate 1 x data_shard 128 x tensor 8" in result.stdout
    assert "70,553,706,496 parameters" in result.stdout
    assert "fits into 80 GB" in result.stdout
    assert "in transformers" in result.stdout
    held = int(result.stdout.split("built for rank 0: ")[1].split()[0].replace(",", ""))
    assert held == pytest.approx(70_553_706_496 / 1024, rel=0.01)  # norms are on all tensor ranks
    smaller = command(tmp_path, "pretrain", *dry, "8", "--run.steps", "100").stdout
    assert "does NOT fit into 8 GB" in smaller
    assert "the warm-up (optimizer.warmup_steps 100) is not over before the end of the run (100 steps)" in smaller
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_refuses_what_a_run_would_refuse(tmp_path):
    result = command(tmp_path, "pretrain", "--run.dry_run", "true", "--run.dry_run_ranks", "1001")
    assert result.returncode == 2
    assert "parallel.tensor 8 does not divide the 1001 processes" in result.stderr


def test_the_planner_ranks_layouts_that_fit(tmp_path):
    result = command(tmp_path, "plan", "--plan.ranks", "1024", "--plan.top", "5")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[2:]]
    assert len(rows) == 5
    assert all(float(row[0]) <= 80 * 0.92 for row in rows)
    seconds = [float(row[3]) for row in rows]
    assert seconds == sorted(seconds)
    small = command(tmp_path, "plan", "--plan.ranks", "8", "--batch.global_size", "8", "--plan.memory_gb", "24")
    assert "0 fit into 24 GB" in small.stdout
    assert "none fits; the nearest are" in small.stdout


def test_the_planner_says_what_is_wrong(tmp_path):
    odd = command(tmp_path, "plan", "--plan.ranks", "7", "--batch.global_size", "8")
    assert odd.returncode == 2
    assert "no layout of 7 ranks divides batch.global_size 8" in odd.stderr
    assert "plan.tflops is 0; it must be a number above 0" in command(tmp_path, "plan", "--plan.tflops", "0").stderr
