"""The limit of open files. That the number of connections is what real ranks open: test_many_ranks.py."""

import os
import resource

import pytest

from ingot.parallel import mesh as meshes
from ingot.parallel.open_files import num_connections
from tests.ranks import run_ranks


def test_the_connections_of_1024_ranks():
    """In the layout of a pretraining run with FSDP2: the group of all, and axes of one rank."""
    groups = [1024, 1, 1]
    of_all = [num_connections(rank, groups, holds_store=rank == 0) for rank in range(1024)]
    assert of_all[0] == (1024 + 2) + 3 + 1023 + (32 + 1)  # store, listening, gloo, ranks below
    assert of_all[1] == 1 + 3 + 19 + (32 + 1 + 1)
    assert of_all[1023] == 1 + 3 + 19 + 1
    assert max(of_all[1:]) == 58
    assert num_connections(5, groups, holds_store=False, lazy=False) == 1 + 3 + 1023 + 34


def test_each_connection_is_counted_at_both_ends():
    """But for what listens, and the connection of the store's holder to itself."""
    for size in (2, 7, 16, 33, 100):
        for lazy in (True, False):
            counts = [
                num_connections(rank, [size], holds_store=rank == 0, lazy=lazy, children=4) for rank in range(size)
            ]
            listening = 1 + size + sum(rank * 4 + 1 < size for rank in range(size))
            assert (sum(counts) - listening) % 2 == 0


def start_with(hard: int, soft: int) -> tuple[str, int]:
    """As rank 0 of 1,024 in a process with these limits: why it ends, and its limit then."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.environ["WORLD_SIZE"] = "1024"
    with pytest.raises(ValueError, match="ranks") as caught:
        meshes.start("cpu", rendezvous_seconds=1)
    return str(caught.value), resource.getrlimit(resource.RLIMIT_NOFILE)[0]


@pytest.mark.distributed
def test_a_limit_that_is_too_low_is_refused_at_once():
    [(message, _)] = run_ranks(start_with, 1, 2000, 1000)
    assert message.startswith("rank 0 of a run with 1,024 ranks needs up to 2,")
    assert "this system allows 2,000 (ulimit -H -n)" in message


@pytest.mark.distributed
def test_the_limit_is_raised_to_what_the_system_allows():
    [(message, limit)] = run_ranks(start_with, 1, 4000, 100)
    assert limit == 4000
    assert "1023 are missing: 1, 2, 3, 4, 5, 6, 7, 8, ..." in message
