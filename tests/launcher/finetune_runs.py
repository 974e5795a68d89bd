"""Fine-tunes tiny models on tiny tasks, in this process."""

import json
from pathlib import Path

import torch

from ingot.launcher import finetune

CPU = torch.device("cpu")
BASE = [
    "--run.device", "cpu", "--run.log_every", "1", "--parallel.engine", "fsdp", "--parallel.precision", "fp32",
    "--optimizer.learning_rate", "3e-3", "--batch.global_size", "16", "--batch.micro_tokens", "256",
    "--task.max_length", "48",
]  # fmt: skip


def run(start: Path, folder: Path, task: list[str], *more: object, code: int = 0) -> list[dict]:
    """Fine-tunes, and returns the records of metrics.jsonl."""
    given = ["--init.model", start, "--run.dir", folder / "runs", *BASE, *task, *more]
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more threads do not speed up so small a model, and other tests run at the same time
    try:
        assert finetune.main([str(part) for part in given]) == code
    finally:
        torch.set_num_threads(num_threads)
    return lines(folder)


def lines(folder: Path, name: str = "run") -> list[dict]:
    return [json.loads(line) for line in (folder / "runs" / name / "metrics.jsonl").read_text().splitlines()]


def losses(records: list[dict]) -> list[float]:
    return [record["loss"] for record in records if record["kind"] == "train"]


def last_scores(records: list[dict]) -> dict:
    return [record for record in records if record["kind"] == "eval"][-1]
