"""A rank that is really slower than the others is named at the start."""

import multiprocessing
import os
import time

import pytest

from ingot.parallel import mesh as meshes
from ingot.parallel.device_check import MOST_NAMED, Timing, check_devices, notes
from tests.ranks import run_ranks

SLOWED = 2


def spin() -> None:
    while True:
        pass


def check(slowed: int | None) -> tuple[list[str], float]:
    """What the check says, and its seconds, with a busy process that comes first on the core of one rank. The others
    have another core."""
    mesh = meshes.start("cpu")
    *others, last = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {last} if mesh.rank == slowed else set(others))
    context = multiprocessing.get_context("fork")
    busy = [context.Process(target=spin, daemon=True) for _ in range(mesh.rank == slowed)]
    for process in busy:
        process.start()
    os.nice(15 * (mesh.rank == slowed))  # a thirtieth of the core is left for it
    meshes.sum_over_ranks([0])
    start = time.perf_counter()
    found = check_devices(mesh)
    seconds = time.perf_counter() - start
    for process in busy:
        process.kill()
    return found, seconds


@pytest.mark.distributed
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="the slow rank needs a core of its own")
def test_a_rank_on_a_busy_core_is_named():
    (found, seconds), *others = run_ranks(check, 3, SLOWED)
    assert found[0].startswith("check: a product of 512 x 512 matrices has ")
    assert f"on rank {SLOWED}, the slowest" in found[0]
    assert f"rank {SLOWED} on {os.uname().nodename} takes " in found[1], found
    assert [each for each, _ in others] == [[], []]
    assert seconds < 30  # under 2 where nothing is slow


def timings(*seconds: float, ranks_per_host: int = 4) -> list[Timing]:
    return [Timing(f"host-{rank // ranks_per_host}", each, 0.01) for rank, each in enumerate(seconds)]


def test_nobody_is_named_where_all_are_alike():
    assert len(notes(timings(1.0, 1.1, 1.4, 0.9, 1.0, 1.2, 1.0, 1.3), "cuda")) == 1


def test_a_slow_rank_and_a_slow_machine():
    _, rank = notes(timings(1.0, 1.0, 1.0, 1.0, 1.0, 1.6, 1.0, 1.0), "cuda")
    assert rank.startswith("rank 5 on host-1 takes 1.6 times as long as the median rank")
    _, machine = notes(timings(*[1.0] * 8, *[2.0] * 4), "cuda")
    assert machine.startswith("all 4 ranks of machine host-2 take 2.0 times as long")
    _, only = notes(timings(1.0, 1.0, 1.0, 2.0), "cpu")
    assert only.startswith("rank 3 on host-0")


def test_not_more_ranks_are_named_than_one_reads():
    found = notes(timings(*[1.0] * 40, *[2.0, 1.0] * 10), "cuda")
    assert len(found) == 1 + MOST_NAMED + 1
    assert found[-1] == "and 2 more ranks are as slow"


def test_one_rank_is_not_checked():
    mesh = meshes.start("cpu")
    try:
        assert check_devices(mesh) == []
    finally:
        meshes.stop()
