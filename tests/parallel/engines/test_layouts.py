"""Layouts only change speed and memory: real ranks against one process. benchmarks/layouts.py has the whole table."""

import pytest
import torch

from ingot.parallel import checkpoint
from ingot.parallel import mesh as meshes
from ingot.parallel.mesh_sizes import sizes
from ingot.parallel.tensor_parallel.collectives import copy_to_ranks
from ingot.parallel.tensor_shards import Rectangle
from tests.layouts import MODELS, Layout, difference, engine_in, train, train_on, train_plainly
from tests.ranks import run_ranks

LIMIT = {"fp32": 1e-6, "bf16": 5e-3}
COVER = [  # with further settings of the section parallel
    ("gpt2", Layout("zero-1", 2, 2), {"activation_checkpointing": "selective", "offload": "optimizer"}),
    ("gpt2", Layout("replicate", 4, 2, "bf16"), {"activation_checkpointing": "full"}),
    ("gpt2", Layout("hsdp", 1, 2), {}),
    ("llama", Layout("zero-3", 4, 1), {"activation_checkpointing": "full"}),
    ("llama", Layout("fsdp2", 2, 2, "bf16"), {"activation_checkpointing": "selective"}),
    ("llama", Layout("zero-0", 4, 4), {}),
    ("bert", Layout("zero-2", 2, 1, "bf16"), {}),
    ("bert", Layout("fsdp2", 2, 2), {"offload": "all"}),
    ("bert", Layout("zero-3", 1, 1), {"offload": "all"}),
]


def train_in(layouts: list[tuple[str, Layout, dict]]) -> list:
    world = meshes.start("cpu")
    results = [train(model, layout, world, **parallel) for model, layout, parallel in layouts]
    meshes.stop()
    return results


@pytest.fixture(scope="module")
def results():
    """What each of the four ranks found."""
    return run_ranks(train_in, 4, COVER, timeout=600.0)


@pytest.fixture(scope="module")
def expected():
    return {model: train_plainly(model) for model in MODELS}


@pytest.mark.distributed
@pytest.mark.parametrize("index", range(len(COVER)), ids=[f"{c[0]} {c[1]}" for c in COVER])
def test_a_layout_trains_as_one_process_does(results, expected, index):
    model, layout, _ = COVER[index]
    for rank in range(4):
        assert difference(results[rank][index], expected[model]) < LIMIT[layout.precision], f"rank {rank}"


def gradient_of_a_copy() -> float:
    mesh = meshes.start("cpu", tensor=4)
    x = torch.zeros(1, dtype=torch.bfloat16, requires_grad=True)
    parts = [256.0, 1.0, -256.0, 0.5]  # 257 is no bf16
    copy_to_ranks(x, mesh.tensor_group).backward(torch.tensor([parts[mesh.tensor_rank]], dtype=torch.bfloat16))
    meshes.stop()
    return x.grad.item()


@pytest.mark.distributed
def test_a_gradient_is_rounded_once_after_the_sum_over_tensor_ranks():
    assert run_ranks(gradient_of_a_copy, 4) == [1.5] * 4


SAVED = [("llama", Layout("zero-3", 2)), ("gpt2", Layout("fsdp2", 4)), ("bert", Layout("zero-1", 4))]
LOADED = {"llama": Layout("fsdp2", 4), "gpt2": Layout("zero-2", 2), "bert": Layout("hsdp", 1)}


def save_and_continue(folder) -> list:
    world, after = meshes.start("cpu"), []
    for model, layout in SAVED:
        engine = engine_in(model, layout, world)
        train_on(engine, model, layout, 0, 4)
        checkpoint.save(folder / model, engine.shards(), step=4, metadata={}, keep=0)
        after.append(train_on(engine, model, layout, 4, 7))
    meshes.stop()
    return after


def load_and_continue(folder) -> list:
    world, after = meshes.start("cpu"), []
    for model, _ in SAVED:
        layout = LOADED[model] if world.world_size > 1 else Layout("replicate")
        engine = engine_in(model, layout, world)
        for shard in engine.shards():
            shard.tensor.fill_(torch.nan)  # shows what is not read
        reading = checkpoint.ReadCounts()
        checkpoint.load(folder / model / "step-00000004", engine.shards(), counts=reading)  # checks every digest
        assert 0 < reading.needed <= reading.read <= 1.02 * reading.needed
        engine.sync_from_shards(4)
        after.append(train_on(engine, model, layout, 4, 7))
    meshes.stop()
    return after


@pytest.mark.distributed
def test_what_one_layout_saved_another_loads_and_continues(tmp_path):
    straight = run_ranks(save_and_continue, 4, tmp_path)[0]
    for num_ranks in (1, 4):
        for (model, _), found, expected in zip(
            SAVED, run_ranks(load_and_continue, num_ranks, tmp_path)[0], straight, strict=True
        ):
            assert difference(found, expected) < 1e-5, f"{model} on {num_ranks}"
    manifest = checkpoint.read_manifest(tmp_path / "gpt2/step-00000004")
    entry = manifest["tensors"]["model/embedding.token.weight"]
    assert entry["shape"] == [101, 32]  # four ranks hold 26 rows each, and the padding is nobody's
    rectangles = [Rectangle(tuple(r["offset"]), tuple(r["shape"])) for r in entry["rectangles"]]
    assert sum(rectangle.numel for rectangle in rectangles) == 101 * 32


def test_sizes_that_do_not_multiply_are_refused_with_those_that_would():
    assert sizes(8) == (1, 8, 1)
    assert sizes(8, tensor=2, data_shard=2) == (2, 2, 2)
    with pytest.raises(ValueError, match=r"tensor 3 does not divide the 8 processes.*1, 2, 4 or 8"):
        sizes(8, tensor=3)
    with pytest.raises(ValueError, match=r"data_shard 3 does not divide the 4 data ranks.*1, 2 or 4"):
        sizes(8, tensor=2, data_shard=3)
