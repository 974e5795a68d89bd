"""Pruning while training: the share of zeros follows its schedule, and is decided over all ranks together."""

from collections.abc import Callable

import pytest
import torch

from launcher.pruning import Pruner, each_matrix, magnitude, sensitivity, sparsity_at
from parallel import mesh as meshes
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
    own = engine.own_shards
    rename = lambda shard: type(shard)(  # noqa: E731
        shard.name.replace("linear.", "blocks.0."), shard.global_shape, shard.rectangle, shard.tensor
    )
    engine.own_shards = lambda: [rename(shard) for shard in own()]
    before = {shard.key: shard.tensor.clone() for shard in engine.shards()}
    pruner = Pruner(engine, each_matrix, importance=importance, final=0.5, begin=0, end=10, every=5, last=12)
    done = [step for step in range(1, 13) if pruner(step) is not None]
    shards = [shard for shard in engine.shards() if shard.name == NAME]
    found = [(shard.rectangle.offset, shard.rectangle.shape, (shard.tensor == 0).tolist()) for shard in shards]
    values = [before[shard.key].tolist() for shard in shards]
    squares = [before["optimizer/exp_avg_sq/blocks.0.weight", *shard.key[1:]].tolist() for shard in shards]
    biases = [shard.tensor for shard in engine.shards() if shard.name == "model/norm.weight"]
    meshes.stop()
    norms = float(sum((bias == 0).sum() for bias in biases))
    return {"done": done, "zeros": found, "norms": norms, "values": values, "squares": squares}


def whole(parts: list[dict]) -> torch.Tensor:
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
    assert torch.equal(whole(alone), whole(together))
    assert whole(alone).float().mean() == pytest.approx(0.5, abs=1e-3)
    (values,), (squares,) = (map(torch.tensor, alone[0][name]) for name in ("values", "squares"))
    zeros = whole(alone).bool()
    important = values.abs() * (squares.sqrt() if importance is sensitivity else 1.0)
    assert important[zeros].max() < important[~zeros].min()
    assert alone[0]["norms"] == 0
