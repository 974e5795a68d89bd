"""Steps grow from phase to phase; what they read goes on without a gap, and layouts and resumes change nothing."""

import pytest

from ingot.launcher.config.pretrain import Batch, RampPhase
from ingot.launcher.training.batch_ramp import largest, size_of, slots_of
from tests.launcher.runs import launch, records, write_config

BATCH = Batch(global_size=32, ramp=[RampPhase(3, 8), RampPhase(2, 16)])


def test_slots_are_the_sum_of_the_sizes_of_the_steps():
    sizes = [size_of(BATCH, step)[0] for step in range(1, 9)]
    assert sizes == [8, 8, 8, 16, 16, 32, 32, 32]
    assert [slots_of(BATCH, steps) for steps in range(9)] == [sum(sizes[:steps]) for steps in range(9)]
    assert [size_of(BATCH, step)[1] for step in (1, 3, 4, 6)] == [3, 3, 5, None]
    assert largest(Batch(global_size=4, ramp=[RampPhase(1, 16)])) == 16
    assert size_of(Batch(global_size=4), 1) == (4, None)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_ramp_trains_the_same_in_another_layout_and_after_a_stop(corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    common = [
        "--config",
        config,
        "--parallel.precision",
        "fp32",
        "--optimizer.lr_decay_steps",
        7,
        "--batch.micro_size",
        1,
    ]
    common += ["--batch.ramp", "[{steps: 2, global_size: 2}, {steps: 2, global_size: 4}]"]
    launch("python", *common, "--run.steps", 7, "--run.name", "one", "--parallel.engine", "fsdp")
    zero = ["--run.name", "two", "--parallel.zero_stage", 2]
    launch("deepspeed 2", *common, "--run.steps", 3, *zero)
    launch("deepspeed 2", *common, "--run.steps", 7, *zero)
    one, two = (records(tmp_path / "runs" / name) for name in ("one", "two"))
    assert [r["samples"] for r in one] == [2, 4, 8, 12, 20, 28, 36]
    assert [r["samples"] for r in two] == [r["samples"] for r in one]
    assert [r["batch_fingerprint"] for r in two] == [r["batch_fingerprint"] for r in one]
    for key in ("loss", "grad_norm"):
        assert [r[key] for r in two] == pytest.approx([r[key] for r in one], rel=1e-5), key


def test_a_size_that_cannot_be_shared_is_refused_before_anything_starts(corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    result = launch("python", "--config", config, "--batch.ramp", "[{steps: 2, global_size: 3}]", code=2)
    assert "a micro-batch of 2 sequences does not divide the 3 of each rank" in result.stderr
    result = launch("python", "--config", config, "--batch.ramp", "[{steps: 0, global_size: 4}]", code=2)
    assert "batch.ramp[0].steps is 0; it must be positive" in result.stderr
