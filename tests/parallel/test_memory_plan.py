"""The arithmetic of memory and communication, against figures of the papers that it comes from."""

from dataclasses import replace

import pytest

from ingot.parallel.memory_plan import MOST_OWNERS, Footprint, LayoutSizes, memory, traffic, zero_states

FOOTPRINT = Footprint(block=1_000_000, num_blocks=10, rest=2_000_000, small=0, activations=0.0, exchanged=5.0)


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120.0), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_zero_paper(stage, gigabytes):
    """arXiv 1910.02054, figure 1: 7.5 billion parameters on 64 devices."""
    assert sum(zero_states(7.5e9, 64, stage)) / 1e9 == pytest.approx(gigabytes, abs=0.05)


def layout(engine: str, stage: int = 1, **more) -> LayoutSizes:
    return LayoutSizes(**{"engine": engine, "stage": stage, "num_data": 8, "data_shard": 8, "tensor": 1, **more})


def test_states_of_engines():
    count = FOOTPRINT.parameters
    states = {stage: memory(FOOTPRINT, layout("zero", stage)).states / count for stage in range(4)}
    assert states == pytest.approx({0: 16, 1: 2 + 4 + 12 / 8, 2: 2 + 16 / 8, 3: 18 / 8})
    assert memory(FOOTPRINT, layout("fsdp")).states / count == pytest.approx(16 / 8)
    assert memory(FOOTPRINT, layout("fsdp", data_shard=2)).states / count == pytest.approx(16 / 2)
    assert memory(FOOTPRINT, layout("zero", 3, offload="all")).states == 0
    assert memory(FOOTPRINT, layout("zero", 2, offload="optimizer")).optimizer == 0


def test_traffic_of_engines():
    """ZeRO-1 sends what replicas send, ZeRO-3 half as much again (arXiv 1910.02054, section 7), in equal precision."""
    count, around = FOOTPRINT.parameters, 7 / 8
    sent = {stage: traffic(FOOTPRINT, layout("zero", stage, precision="fp32")).data / count for stage in range(4)}
    assert sent == pytest.approx(dict.fromkeys(range(4), 8 * around))  # so small a model stays gathered at ZeRO-3
    exposed = {stage: traffic(FOOTPRINT, layout("zero", stage)).exposed / count for stage in range(4)}
    assert exposed == pytest.approx({0: 8 * around, 1: 2 * around, 2: 2 * around, 3: 0})
    assert traffic(FOOTPRINT, layout("fsdp")).exposed == 0
    large = replace(FOOTPRINT, block=10**11)
    assert traffic(large, layout("zero", 3, precision="fp32")).data == pytest.approx(12 * around * 10**12, rel=1e-3)
    assert traffic(FOOTPRINT, layout("zero", 3, accumulation=2)).data == pytest.approx(2 * 6 * around * count)
    assert traffic(FOOTPRINT, layout("fsdp", data_shard=1)).data == pytest.approx(8 * around * count)
    assert traffic(FOOTPRINT, layout("fsdp", accumulation=3)).tensor == 3 * 10 * 5.0


def test_traffic_of_shards():
    count, again = FOOTPRINT.parameters, 9_000_000  # all blocks but the last are gathered twice
    both = layout("fsdp", data_shard=4, accumulation=2)
    all_reduced = 2 * 1 / 2 * 4 * count / 4
    assert traffic(FOOTPRINT, both).data == pytest.approx(3 / 4 * 2 * (2 * (count + again) + 4 * count) + all_reduced)
    kept = replace(both, reshard_after_forward=False, reduce_dtype="bf16")
    assert traffic(FOOTPRINT, kept).data == pytest.approx(3 / 4 * 2 * (2 + 2) * count + all_reduced / 2)
    once = replace(both, sync_each_micro_batch=False)
    assert traffic(FOOTPRINT, both).data - traffic(FOOTPRINT, once).data == pytest.approx(3 / 4 * 4 * count)
    assert memory(FOOTPRINT, once).total - memory(FOOTPRINT, both).total == 4 * count
    assert memory(FOOTPRINT, kept).buffers > memory(FOOTPRINT, both).buffers


def test_many_data_ranks_all_reduce_what_few_reduce_to_the_owners():
    few, many = (layout("zero", 2, num_data=n, data_shard=n) for n in (MOST_OWNERS, 2 * MOST_OWNERS))
    count = FOOTPRINT.parameters
    assert traffic(FOOTPRINT, few).data == pytest.approx((1 - 1 / MOST_OWNERS) * 6 * count)
    assert traffic(FOOTPRINT, many).data == pytest.approx((1 - 1 / 2 / MOST_OWNERS) * 10 * count)
