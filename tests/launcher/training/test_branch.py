"""Which checkpoints of a run stay, and from which one it goes on: after damage, a rollback, or a copy by hand."""

import json
import shutil
from pathlib import Path

import pytest

from ingot.launcher import pretrain
from ingot.launcher.runtime.exit_codes import BadInput
from ingot.parallel import checkpoint
from tests.launcher.runs import launch, records, write_config


def train(config: Path, steps: int, *arguments: object) -> None:
    options = ["--run.steps", steps, "--run.save_every", 2, "--parallel.engine", "fsdp", *arguments]
    assert pretrain.main(["--config", str(config), *map(str, options)]) == 0


@pytest.fixture(scope="module")
def original(corpus, tmp_path_factory) -> Path:
    """The folder of a run with checkpoints of steps 2, 4 and 6."""
    config = write_config(tmp_path_factory.mktemp("branches"), corpus)
    train(config, 6, "--run.keep_checkpoints", 0)
    return config.parent


@pytest.fixture
def config(original, tmp_path) -> Path:
    shutil.copytree(original, tmp_path / "copy")
    path = tmp_path / "copy/config.yaml"
    path.write_text(path.read_text().replace(str(original), str(path.parent)))
    return path


def checkpoints(config: Path) -> Path:
    return config.parent / "runs/tiny/checkpoints"


def names(config: Path) -> list[str]:
    return sorted(path.name.removeprefix("step-").lstrip("0") for path in checkpoints(config).glob("step-*"))


def damage(path: Path) -> None:
    file = path / "rank-00000.safetensors"
    file.write_bytes(file.read_bytes()[:-1])


def test_a_damaged_checkpoint_neither_counts_nor_costs_an_intact_one(config):
    damage(checkpoints(config) / "step-00000006")
    train(config, 5, "--run.keep_checkpoints", 1)
    assert names(config) == ["5", "6.damaged-1"]
    checkpoint.read_manifest(checkpoints(config) / "step-00000005")
    train(config, 6, "--run.keep_checkpoints", 1)  # it goes on from there
    assert names(config) == ["6", "6.damaged-1"]
    assert [record["step"] for record in records(config.parent / "runs/tiny")] == [1, 2, 3, 4, 5, 6]


def test_after_a_rollback_the_run_goes_on_from_the_new_branch_and_nothing_is_lost(config):
    source = checkpoints(config) / "step-00000002"
    train(config, 3, "--run.resume", source, "--run.keep_checkpoints", 2, "--optimizer.learning_rate", 5e-3)
    assert names(config) == ["2", "3", "4.abandoned-1", "6.abandoned-1"]
    assert (checkpoints(config) / "LATEST").read_text() == "step-00000003\n"
    for number in (4, 6):
        checkpoint.read_manifest(checkpoints(config) / f"step-0000000{number}.abandoned-1")
    train(config, 4, "--run.keep_checkpoints", 0, "--optimizer.learning_rate", 5e-3)
    assert names(config) == ["2", "3", "4", "4.abandoned-1", "6.abandoned-1"]
    lineages = [checkpoint.read_manifest(checkpoints(config) / f"step-0000000{n}")["lineage"] for n in (2, 3, 4)]
    first, *later = [[(entry["branch"], entry["from_step"]) for entry in lineage] for lineage in lineages]
    assert later[0] == later[1] == [*first, (later[0][-1][0], 2)]
    log = (config.parent / "runs/tiny/log.txt").read_text()
    assert "step-00000006 was set aside as step-00000006.abandoned-1" in log


def test_what_a_run_was_told_to_resume_from_is_not_removed(config):
    train(config, 6, "--run.resume", checkpoints(config) / "step-00000002", "--run.keep_checkpoints", 1)
    assert names(config) == ["2", "4.abandoned-1", "6", "6.abandoned-1"]


def test_checkpoints_of_another_run_are_a_new_branch(config, original, tmp_path):
    other = original / "runs/tiny/checkpoints/step-00000004"
    train(config, 5, "--run.resume", other, "--run.keep_checkpoints", 0)
    assert names(config) == ["2", "4", "5", "6.abandoned-1"]  # 2 and 4 are copies of those of the other run


def test_a_copy_by_hand_under_a_later_step_changes_nothing(config):
    shutil.copytree(checkpoints(config) / "step-00000004", checkpoints(config) / "step-00000099")
    train(config, 8, "--run.keep_checkpoints", 2)
    assert names(config) == ["6", "8", "99.damaged-1"]


def test_a_copied_checkpoint_under_a_later_step_is_not_trusted_by_its_name(config):
    shutil.rmtree(checkpoints(config) / "step-00000006")
    (checkpoints(config) / "step-00000004").rename(checkpoints(config) / "step-00000006")
    with pytest.raises(BadInput, match="its name says step 6, and it holds step 4"):
        train(config, 8, "--run.resume", checkpoints(config) / "step-00000006")


def test_superseded_records_are_moved_and_a_torn_line_is_cut(config):
    run = config.parent / "runs/tiny"
    shutil.rmtree(checkpoints(config) / "step-00000006")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    train(config, 6)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4, 5, 6]
    moved = [json.loads(line) for line in (run / "metrics.superseded.jsonl").read_text().splitlines()]
    assert [line["step"] for line in moved if line["kind"] == "train"] == [5, 6]


def test_a_run_that_ends_before_its_first_save_goes_on_from_where_it_began(config, original):
    other = original / "runs/tiny/checkpoints/step-00000006"
    shutil.rmtree(checkpoints(config) / "step-00000006")
    train(config, 6, "--run.resume", other)  # nothing is trained, so nothing is saved
    assert names(config) == ["2", "4"]
    train(config, 7)
    assert names(config)[-1] == "7"
    assert (config.parent / "runs/tiny/log.txt").read_text().count(f"resumed from {other}") == 2
    assert not (checkpoints(config) / "SOURCE.json").exists()


def test_a_checkpoint_that_was_set_aside_can_be_resumed_from(config):
    train(config, 3, "--run.resume", checkpoints(config) / "step-00000002", "--run.keep_checkpoints", 0)
    aside = checkpoints(config) / "step-00000006.abandoned-1"
    train(config, 6, "--run.resume", aside)
    assert names(config) == ["2", "3.abandoned-1", "4.abandoned-1", "6.abandoned-1"]
    train(config, 7)
    run = config.parent / "runs/tiny"
    assert names(config)[-1] == "7"
    assert "nothing to train: the run has done 6 steps, and is to have 6" in (run / "log.txt").read_text()
    assert checkpoint.read_manifest(checkpoints(config) / "step-00000007")["lineage"][-1]["from_step"] == 6


def test_a_damaged_checkpoint_that_is_named_says_nothing_of_the_others(config):
    damage(checkpoints(config) / "step-00000004")
    with pytest.raises(BadInput, match=r"run\.resume names this one; name another one"):
        train(config, 8, "--run.resume", checkpoints(config) / "step-00000004")


@pytest.mark.distributed
def test_two_ranks_roll_back_together(config):
    """They evaluate before the first step, which only the first rank can know from the folder."""
    options = ["--run.steps", 3, "--run.save_every", 2, "--parallel.engine", "fsdp"]
    launch("torchrun 2", "--config", config, *options, "--run.resume", checkpoints(config) / "step-00000002")
    assert names(config) == ["2", "3", "4.abandoned-1", "6.abandoned-1"]
    assert [record["step"] for record in records(config.parent / "runs/tiny", "eval")][-2:] == [2, 3]
