"""The arithmetic of memory and communication, against figures of the papers that it comes from."""

import pytest

from ingot.parallel.memory_plan import Footprint, LayoutSizes, memory, traffic, zero_states

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
    assert sent == pytest.approx({0: 8 * around, 1: 8 * around, 2: 8 * around, 3: 12 * around})
    assert traffic(FOOTPRINT, layout("zero", 3, accumulation=2)).data == pytest.approx(2 * 8 * around * count)
    assert traffic(FOOTPRINT, layout("fsdp", data_shard=1)).data == pytest.approx(8 * around * count)
    hybrid = traffic(FOOTPRINT, layout("fsdp", data_shard=4)).data
    assert hybrid == pytest.approx(8 * 3 / 4 * count + 2 * 1 / 2 * 4 * count / 4)
    assert traffic(FOOTPRINT, layout("fsdp", accumulation=3)).tensor == 3 * 10 * 5.0
