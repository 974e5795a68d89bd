"""Pruning while training: the share of zeros follows its schedule, and is decided over all ranks together."""

from collections.abc import Callable

import pytest
import torch

from ingot.launcher.finetuning.pruning import Pruner, each_matrix, magnitude, sensitivity, sparsity_at, triplets
from ingot.parallel import mesh as meshes
from ingot.parallel.tensor_shards import flat_shards
from tests.parallel.toy import build, train
from tests.ranks import run_ranks

NAME = "model/blocks.0.weight"


def test_the_share_grows_with_the_cube_of_what_is_left():
    at = lambda step: sparsity_at(step, final=0.8, begin=10, end=30)  # noqa: E731
    assert [at(step) for step in (0, 10, 30, 99)] == [0, 0, 0.8, 0.8]
    assert at(20) == pytest.approx(0.8 * (1 - 0.5**3))


def pruned(kind: str, importance: Callable) -> dict:
    """What is 0 of the toy's matrix on this rank after pruning half of it, and when it was done."""
    mesh = meshes.start("cpu")
    engine = build(kind, mesh)
    train(engine, 0, 2)
    own = engine.local_shards
    rename = lambda shard: type(shard)(  # noqa: E731
        shard.name.replace("linear.", "blocks.0."), shard.global_shape, shard.rectangle, shard.tensor
    )
    engine.local_shards = lambda: [rename(shard) for shard in own()]
    before = {shard.key: shard.tensor.clone() for shard in engine.shards()}
    pruner = Pruner(engine, each_matrix, importance=importance, final=0.5, begin=0, end=10, every=5, last=12)
    done = [step for step in range(1, 13) if pruner.prune(step) is not None]
    shards = [shard for shard in engine.shards() if shard.name == NAME]
    found = [(shard.rectangle.offset, shard.rectangle.shape, (shard.tensor == 0).tolist()) for shard in shards]
    values = [before[shard.key].tolist() for shard in shards]
    squares = [before["optimizer/exp_avg_sq/blocks.0.weight", *shard.key[1:]].tolist() for shard in shards]
    biases = [shard.tensor for shard in engine.shards() if shard.name == "model/norm.weight"]
    meshes.stop()
    norms = float(sum((bias == 0).sum() for bias in biases))
    return {"done": done, "zeros": found, "norms": norms, "values": values, "squares": squares}


def whole_shard(parts: list[dict]) -> torch.Tensor:
    result = torch.full((33, 33), -1)
    for part in parts:
        for offset, shape, zeros in part["zeros"]:
            result[tuple(slice(o, o + n) for o, n in zip(offset, shape, strict=True))] = torch.tensor(zeros).long()
    return result


@pytest.mark.distributed
@pytest.mark.parametrize(("kind", "importance"), [("fsdp", magnitude), ("torch", magnitude), ("fsdp", sensitivity)])
def test_ranks_prune_what_one_process_does(kind, importance):
    alone = run_ranks(pruned, 1, "torch", importance)
    together = run_ranks(pruned, 2, kind, importance)
    assert alone[0]["done"] == together[0]["done"] == [5, 10, 12]
    assert torch.equal(whole_shard(alone), whole_shard(together))
    assert whole_shard(alone).float().mean() == pytest.approx(0.5, abs=1e-3)
    (values,), (squares,) = (map(torch.tensor, alone[0][name]) for name in ("values", "squares"))
    zeros = whole_shard(alone).bool()
    important = values.abs() * (squares.sqrt() if importance is sensitivity else 1.0)
    assert important[zeros].max() < important[~zeros].min()
    assert alone[0]["norms"] == 0


TRIPLETS = {
    f"model/blocks.{n}.attention.query.{part}.default": shape
    for n in range(2)
    for part, shape in (("lora_A", (4, 6)), ("lora_B", (5, 4)), ("lora_E", (4, 1)))
}


def values_and_squares() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: (torch.randn(shape, generator=draw), torch.rand(shape, generator=draw))
        for name, shape in TRIPLETS.items()
    }


def importance_of_parts(copies: bool) -> list[tuple]:
    """What `triplets` finds of the singular values, where ranks hold all, or each a run of elements."""
    mesh = meshes.start("cpu")
    rank, world = mesh.rank, mesh.world_size
    held = []
    for name, (values, squares) in values_and_squares().items():
        begin, end = (0, values.numel()) if copies else (values.numel() * n // world for n in (rank, rank + 1))
        parts = [flat_shards(name, tuple(values.shape), begin, x.flatten()[begin:end]) for x in (values, squares)]
        held += [(shard, other.tensor) for shard, other in zip(*parts, strict=True)]
    importance = triplets(held)
    meshes.stop()
    return [
        (shard.name, shard.rectangle.offset[0], importance(shard, squares).flatten().tolist())
        for shard, squares in held
        if "lora_E" in shard.name
    ]


@pytest.mark.distributed
@pytest.mark.parametrize(("world_size", "copies"), [(1, False), (3, False), (2, True)])
def test_a_singular_value_counts_with_its_row_and_column(world_size, copies):
    """As Zhang et al. 2023 have it: its own sensitivity and the means of those of its row of A and its column of B."""
    sensitive = {name: values.abs() * squares.sqrt() for name, (values, squares) in values_and_squares().items()}
    seen = 0
    for found in run_ranks(importance_of_parts, world_size, copies):
        for name, first, values in found:
            a_RI, b_OR = (sensitive[name.replace("lora_E", part)] for part in ("lora_A", "lora_B"))
            expected_R = sensitive[name][:, 0] + a_RI.mean(1) + b_OR.mean(0)
            assert values == pytest.approx(expected_R[first : first + len(values)].tolist(), rel=1e-6)
            seen += len(values)
    assert seen == 8 * (world_size if copies else 1)
