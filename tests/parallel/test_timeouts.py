"""A rank that stalls is noticed in each process group, after the time that is meant, and not while ranks start."""

import time

import pytest
import torch
import torch.distributed as dist

from ingot.parallel import mesh as meshes
from ingot.parallel.torch_compat import process_groups
from tests.parallel.toy import build
from tests.ranks import run_ranks

SHORT = 1


def stall() -> dict[str, float]:
    """Rank 0 comes too late to a sum of each group. Returns how long this rank has waited there until it failed."""
    mesh = meshes.start("cpu", SHORT, tensor=2, data_shard=1, init_timeout_seconds=60)
    groups = {
        "all": dist.group.WORLD,
        "data_replicate": mesh.torch_mesh["data_replicate"].get_group(),
        "tensor": mesh.tensor_group,
        "data": mesh.data_group,
        "copies": mesh.consecutive_group(2),
        "later": dist.new_group(list(range(4))),
    }
    mesh.set_timeouts("long")  # the start is not cut
    if mesh.rank == 0:
        time.sleep(2.5 * SHORT)
    for group in groups.values():
        dist.all_reduce(torch.zeros(1), group=group)
    mesh.set_timeouts("short")
    for group in groups.values():
        dist.all_reduce(torch.zeros(1), group=group)
    if mesh.rank == 0:
        time.sleep(4 * SHORT)
        return {}
    start = time.monotonic()
    works = {name: dist.all_reduce(torch.zeros(1), group=group, async_op=True) for name, group in groups.items()}
    failed = {}
    for name, work in works.items():
        try:
            work.wait()
        except RuntimeError:
            failed[name] = time.monotonic() - start
    return failed


@pytest.mark.distributed
def test_a_stalled_rank_is_noticed_in_each_group():
    failed = run_ranks(stall, 4)
    seen_by = {
        "all": {1, 2, 3},
        "later": {1, 2, 3},
        "tensor": {1},
        "copies": {1},
        "data": {2},
        "data_replicate": {2},
    }
    for name, ranks in seen_by.items():
        assert {rank for rank in range(4) if name in failed[rank]} >= ranks, (name, failed)
        for rank in ranks:
            assert 0.8 * SHORT < failed[rank][name] < 3 * SHORT, (name, rank, failed)
    assert not {"tensor", "copies"} & failed[2].keys()  # groups without rank 0


def timeouts() -> list[set[float]]:
    """Of all process groups and of DeepSpeed's, in seconds: after the start, then short, then long."""
    mesh = meshes.start("cpu", 7, init_timeout_seconds=70)
    groups = [*process_groups(), build("zero-1", mesh).engine.data_parallel_group]
    found = []
    for length in (None, "short", "long"):
        if length:
            mesh.set_timeouts(length)
        found.append({g._get_backend(torch.device("cpu")).options._timeout.total_seconds() for g in groups})
    return found


@pytest.mark.distributed
def test_all_groups_have_the_same_timeout():
    assert run_ranks(timeouts, 2) == [[{70.0}, {7.0}, {70.0}]] * 2
