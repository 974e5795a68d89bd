"""Batch size ramps: steps read the data without a gap, and layouts and resumes change nothing."""

import pytest

from ingot.launcher.training.batch_sizes import BatchSizes
from tests.launcher.runs import launch, records, write_config

SIZES = BatchSizes(32, ((3, 8), (2, 16)))


def test_slots_are_the_sum_of_the_sizes_of_the_steps():
    sizes = [SIZES.size_at(step)[0] for step in range(1, 9)]
    assert sizes == [8, 8, 8, 16, 16, 32, 32, 32]
    assert [SIZES.slots_before(step) for step in range(1, 10)] == [sum(sizes[:steps]) for steps in range(9)]
    assert [SIZES.size_at(step)[1] for step in (1, 3, 4, 6)] == [3, 3, 5, None]
    assert BatchSizes(4, ((1, 16),)).largest == 16
    assert BatchSizes(4).size_at(1) == (4, None)


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


def test_a_size_that_does_not_divide_is_refused_before_anything_starts(corpus, tmp_path):
    config = write_config(tmp_path, corpus)
    result = launch("python", "--config", config, "--batch.ramp", "[{steps: 2, global_size: 3}]", code=2)
    assert "a micro-batch of 2 sequences does not divide the 3 sequences of each rank" in result.stderr
    result = launch("python", "--config", config, "--batch.ramp", "[{steps: 0, global_size: 4}]", code=2)
    assert "batch.ramp[0].steps is 0; it must be a whole number from 1" in result.stderr
