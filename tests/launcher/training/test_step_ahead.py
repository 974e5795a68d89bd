"""The next step is agreed on while the present one is computed, and nothing that the ranks tell each other is lost."""

import json
import sys
import time

import pytest

from ingot.data.corpus.quarantine import Damage, Quarantine
from ingot.launcher import pretrain
from ingot.launcher.runtime import exit_codes
from ingot.launcher.training import trainer
from ingot.launcher.training.progress import Progress
from ingot.parallel import mesh as meshes
from tests.delayed_network import run_in_two_networks
from tests.launcher.runs import records, write_config
from tests.launcher.training.steps_over_network import COMPUTE, CountingReader, ahead_of
from tests.ranks import run_ranks

MOVING = (
    "step_seconds",
    "data_seconds",
    "tokens_per_second",
    "tflops_per_device",
    "needed_tflops_per_device",
    "peak_memory_bytes",
    "time",
)


def take(ahead, watch, last):
    """Does all steps, as the trainer does. Returns the cursor and the votes of each."""
    progress, taken = Progress(), []
    for step in ahead.steps(progress, last):
        if watch.agree(*step.bad_data, step.found, progress.step + 1):
            ahead.read_again()
        progress.step, progress.cursor = progress.step + 1, step.batch.cursor
        taken.append((step.batch.cursor, *step.votes))
    return taken


def exchange_ahead() -> dict:
    """Each rank finds one damage while it reads the third step, and another one while it reads the fourth."""
    mesh = meshes.start("cpu", 60)
    quarantine = Quarantine()
    done: list = []

    def on_read(cursor: int) -> None:
        if cursor in (8, 12):
            quarantine.add(Damage("corpus", "a.tar", f"rank{mesh.rank}", cursor, 0, "bad"))

    reader = CountingReader(on_read)
    ahead, watch = ahead_of(mesh, reader, quarantine, votes=lambda: [len(done), mesh.rank])
    progress, votes = Progress(), []
    steps = ahead.steps(progress, 5)
    for step in steps:
        if watch.agree(*step.bad_data, step.found, progress.step + 1):
            ahead.read_again()
        progress.step, progress.cursor = progress.step + 1, step.batch.cursor
        votes.append(list(step.votes))
        done.append(progress.step)
    # A run that ends early leaves the step that is being agreed on together with the others.
    early = ahead.steps(Progress(), 5)
    next(early)
    early.close()
    left = meshes.sum_over_ranks([1], mesh.control_group)
    meshes.stop()
    return {"read": reader.read, "known": sorted(watch.names), "votes": votes, "left": left}


@pytest.mark.distributed
def test_ranks_learn_all_damage_and_read_again_what_they_had_read_ahead():
    for result in run_ranks(exchange_ahead, 2):
        # The damage of step 3 is known when step 3 begins. Step 4, which was read ahead, is read again. What it found
        # the first time is told with the second time, so step 5 is read again too.
        assert result["read"][:7] == [0, 4, 8, 12, 12, 16, 16]
        assert result["known"] == [("rank0", 8), ("rank0", 12), ("rank1", 8), ("rank1", 12)]
        assert [ranks for _, ranks in result["votes"]] == [1] * 5
        # As old as the start of the step before; after reading again as new as can be.
        assert [age for age, _ in result["votes"]] == [0, 0, 2, 6, 8]
        assert result["left"] == [2]


def test_sizes_change_between_steps_and_the_last_step_ends_the_reading():
    mesh = meshes.start("cpu")
    try:
        reader = CountingReader()
        ahead, watch = ahead_of(mesh, reader, Quarantine(), ramp=((2, 1), (1, 2)))
        assert [cursor for cursor, *_ in take(ahead, watch, 5)] == [1, 2, 4, 8, 12]
        assert reader.read == [0, 1, 2, 4, 8]  # nothing beyond the last step
    finally:
        meshes.stop()


def test_reading_and_the_present_step_overlap():
    """With sleeps for reading and for a step: alternately they take 8 x 40 ms, ahead of each other 8 x 20 ms."""
    mesh = meshes.start("cpu")
    try:
        ahead, _ = ahead_of(mesh, CountingReader(lambda cursor: time.sleep(0.02)), Quarantine())
        progress, waited = Progress(), []
        steps = ahead.steps(progress, 8)
        for _ in range(8):
            start = time.perf_counter()
            step = next(steps)
            waited.append(time.perf_counter() - start)
            progress.step, progress.cursor = progress.step + 1, step.batch.cursor
            time.sleep(0.04)
        steps.close()
        assert sorted(waited[1:])[3] < 0.01
    finally:
        meshes.stop()


def train(folder, corpus, *arguments):
    config = write_config(folder, corpus)
    options = ("--run.steps", 6, "--run.save_every", 3, "--run.eval_every", 2, "--parallel.engine", "fsdp", *arguments)
    code = pretrain.main(["--config", str(config), *map(str, options)])
    lines = [json.loads(line) for line in (folder / "runs/tiny/metrics.jsonl").read_text().splitlines()]
    return code, [{key: value for key, value in line.items() if key not in MOVING} for line in lines]


def read_late(monkeypatch):
    """Has the trainer read results as it does for a device that computes beside the host."""
    original = trainer.Trainer.__init__

    def __init__(self, *arguments, **options):  # noqa: N807
        original(self, *arguments, **options)
        self.reads_late = True

    monkeypatch.setattr(trainer.Trainer, "__init__", __init__)


def test_results_that_are_read_a_step_late_are_logged_in_the_same_order(corpus, tmp_path, monkeypatch):
    def of_steps(lines):
        return [line for line in lines if line["kind"] in ("train", "eval")]

    code, lines = train(tmp_path / "at_once", corpus)
    read_late(monkeypatch)
    late_code, late = train(tmp_path / "late", corpus)
    assert code == late_code == 0
    assert [line["step"] for line in records(tmp_path / "late/runs/tiny")] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(of_steps(late), of_steps(lines), strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("save_every", [1, 6])
def test_a_step_that_is_not_finite_is_never_saved_even_if_it_is_read_late(corpus, tmp_path, monkeypatch, save_every):
    read_late(monkeypatch)
    options = ["--optimizer.learning_rate", 1e15, "--optimizer.warmup_steps", 0, "--run.eval_every", 0]
    code, lines = train(tmp_path, corpus, *options, "--run.save_every", save_every)
    assert code == exit_codes.GIVE_UP
    (event,) = [line for line in lines if line["kind"] == "event" and "not finite" in json.dumps(line)]
    saved = [int(path.name.removeprefix("step-")) for path in (tmp_path / "runs/tiny/checkpoints").glob("step-*")]
    assert all(step < event["step"] for step in saved)
    assert all(line["step"] < event["step"] for line in lines if line["kind"] == "train")


@pytest.mark.distributed
def test_a_slow_network_between_hosts_does_not_lengthen_a_step():
    command = [sys.executable, "-m", "tests.launcher.training.steps_over_network"]
    ended = run_in_two_networks([command, command], 0.02)
    assert [each.returncode for each in ended] == [0, 0], ended
    seconds = json.loads(ended[0].output.strip().splitlines()[-1])
    assert seconds["before"] > COMPUTE + 0.035  # there and back
    assert seconds["ahead"] < COMPUTE + 0.01
