"""Ranks that start, train and lose one of them: few enough here for every test run, and 64 in the slow ones."""

import pytest

from ingot.launcher.runtime.exit_codes import REQUEUE
from ingot.launcher.runtime.peer_watchdog import ranks_above
from ingot.parallel.open_files import num_connections
from tests.many_ranks import run_many_ranks


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("num_ranks", "lost", "children"),
    [(16, 1, 4), pytest.param(64, 1, 8, marks=pytest.mark.slow), pytest.param(64, 40, 32, marks=pytest.mark.slow)],
)
def test_all_name_the_lost_rank_and_connections_are_as_many_as_calculated(tmp_path, num_ranks, lost, children):
    """The lost one has ranks above and below it in the tree, or is a leaf of it."""
    ranks = run_many_ranks(num_ranks, lost, tmp_path, children=children)
    for number, rank in enumerate(ranks):
        expected = num_connections(number, rank.group_sizes, holds_store=number == 0, children=children)
        assert rank.sockets == expected, f"rank {number} of groups {rank.group_sizes}"
        if number == lost:
            continue
        assert rank.code == REQUEUE, rank.output
        assert f"rank {number} lost its connection to rank {lost}" in rank.output
        assert "Traceback" not in rank.output
        assert rank.lost_seconds < 8  # a grace of 5, and time for a busy machine
    assert len({tuple(rank.losses) for rank in ranks}) == 1


def test_ranks_above():
    assert ranks_above(0) == []
    assert ranks_above(32) == [0]
    assert ranks_above(33) == [1, 0]
    assert max(len(ranks_above(rank)) for rank in range(1024)) == 2
