"""Starts real runs of a tiny model on a tiny corpus, as a user does."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

TINY = """
run: {{name: tiny, dir: {runs}, seed: 7, steps: 20, log_every: 1, eval_every: 0, save_every: 10, device: cpu}}
model: {{vocab_size: 512, num_hidden_layers: 2, num_attention_heads: 2, hidden_size: 32, max_position_embeddings: 64,
        causal: {causal}, positions: rotary, norm: rmsnorm, gated_mlp: true, activation: silu, bias: false}}
data: {{train: [{{path: {corpus}}}], validation: [{{path: {corpus}}}], sequence_length: 32, objective: {objective}}}
batch: {{global_size: 8, micro_size: 2}}
optimizer: {{learning_rate: 1.0e-2, warmup_steps: 5, lr_decay_steps: 20}}
parallel: {{precision: fp32}}
"""


def write_config(folder: Path, corpus: Path, *, objective: str = "clm") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    causal = str(objective == "clm").lower()
    path.write_text(TINY.format(runs=folder / "runs", corpus=corpus, causal=causal, objective=objective))
    return path


def command(launcher: str, script: str = "pretrain") -> list[str]:
    """The start of a command line.

    Args:
        launcher: `python`, `deepspeed N` or `torchrun N`, with N ranks.
    """
    name, _, ranks = launcher.partition(" ")
    start = {
        "python": [sys.executable],
        "deepspeed": [BIN / "deepspeed", "--num_gpus", ranks, "--master_port", free_port()],
        "torchrun": [BIN / "torchrun", "--nproc_per_node", ranks, "--master_port", free_port()],
    }[name]
    return [*map(str, start), str(ROOT / f"launcher/{script}.py")]


def environment() -> dict[str, str]:
    """The environment without variables that another launcher may have set, and with one thread for each process."""
    left = {"RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"}
    return {name: value for name, value in os.environ.items() if name not in left} | {
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
    }


def launch(launcher: str, *arguments: object, script: str = "pretrain", code: int = 0) -> subprocess.CompletedProcess:
    """Runs a command to its end, and checks the exit code."""
    result = subprocess.run(
        [*command(launcher, script), *map(str, arguments)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == code, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr}"
    return result


def records(run: Path, kind: str = "train") -> list[dict]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]
