"""Fine-tuning over tensor ranks: each kind of task learns as in one process."""

import os
from pathlib import Path

import pytest

from ingot.launcher import finetune
from ingot.launcher.tasks.registry import TASK_KINDS
from tests.launcher.finetune_runs import BASE, last_scores, lines, losses, run
from tests.launcher.tiny_models import write_task
from tests.ranks import free_port, run_ranks

KINDS = list(TASK_KINDS)
SETTINGS = {
    **{kind: [] for kind in KINDS},
    "head alone": ["--method.kind", "linear_probe"],
    "pruned": ["--method.sparsity", "0.5"],
    "R-Drop": ["--method.r_drop", "1"],
    "layer decay": ["--method.layer_decay", "0.5", "--method.unfreeze_steps", "2"],
}
ENGINES = {
    "fsdp": ["--parallel.engine", "fsdp"],
    "zero": ["--parallel.engine", "zero", "--parallel.zero_stage", "2"],
}


def options_of(name: str) -> list[str]:
    return [*SETTINGS[name], "--run.steps", "4", "--run.eval_every", "4", "--task.dropout", "0.0"]


def train_all(folder: Path, starts: dict[str, Path], tasks: dict[str, list[str]], ports: list[int], engine: str):
    for (name, start), port in zip(starts.items(), ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        given = ["--init.model", start, "--run.dir", folder / name / "runs", *BASE, *tasks[name], *options_of(name)]
        assert finetune.main([str(part) for part in [*given, *ENGINES[engine], "--parallel.tensor", 2]]) == 0


@pytest.mark.distributed
@pytest.mark.parametrize("engine", ["fsdp", pytest.param("zero", marks=pytest.mark.slow)])
def test_each_kind_of_task_learns_the_same_over_tensor_ranks(engine, bert, gpt2, tmp_path):
    kinds = {name: name if name in KINDS else "classification" for name in SETTINGS}
    starts = {name: gpt2 if kind == "instruction" else bert for name, kind in kinds.items()}
    tasks = {name: write_task(kind, tmp_path / name, 60) for name, kind in kinds.items()}
    run_ranks(train_all, 2, tmp_path / "together", starts, tasks, [free_port() for _ in starts], engine)
    for name, start in starts.items():
        alone = run(start, tmp_path / "alone" / name, tasks[name], *options_of(name))
        found = lines(tmp_path / "together" / name)
        assert losses(found) == pytest.approx(losses(alone), rel=1e-4), name
        assert last_scores(found)["loss"] == pytest.approx(last_scores(alone)["loss"], rel=1e-4), name
