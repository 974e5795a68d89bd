import hashlib

import numpy as np
import pytest

from ingot.data.order.mixture import Mixture
from ingot.data.order.order import Order
from ingot.data.order.partitions import PartitionCounts, partition_of
from ingot.data.order.windowed_shuffle import ShardWindows

DRAW = np.random.default_rng(0)
SHARDS = [DRAW.integers(0, 40, 60).tolist(), DRAW.integers(5, 9, 17).tolist(), [50, 1, 200]]
SIZES = [sum(shards) for shards in SHARDS]
SEGMENTS = [(0, [0.5, 0.3, 0.2]), (1003, [1, 0, 1]), (2000, [0.2, 0.3, 0.5]), (9001, [1, 1, 0])]


def order(partitions=1, global_batch=24, window_shards=4, seed=1234, segments=None, shards=SHARDS, weights=(4, 2, 1)):
    windows = [ShardWindows(s, window_shards, partitions, global_batch) for s in shards]
    sizes = [sum(s) for s in shards]
    return Order(sizes, list(weights), seed, "window", segments=segments, windows=windows)


@pytest.mark.parametrize(("partitions", "golden"), [(1, "920fcdbf6887c0a7"), (8, "f7c3ac67ef931246")])
def test_golden_windows(partitions, golden):
    content = np.stack(order(partitions).locate(np.arange(20_000))).astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == golden


@pytest.mark.parametrize("segments", [None, SEGMENTS])
@pytest.mark.parametrize(("partitions", "global_batch"), [(1, 24), (2, 24), (8, 24), (24, 24), (5, 35), (3, 3), (4, 4)])
def test_each_epoch_takes_every_instance_once(partitions, global_batch, segments):
    corpus, epoch, instance = order(partitions, global_batch, segments=segments).locate(np.arange(12_000))
    for k, size in enumerate(SIZES):
        mine = corpus == k
        assert np.array_equal(epoch[mine], np.arange(mine.sum()) // size)
        for e in range(mine.sum() // size):
            assert np.array_equal(np.sort(instance[mine & (epoch == e)]), np.arange(size))
        rest = instance[mine & (epoch == mine.sum() // size)]  # the epoch under way
        assert len(np.unique(rest)) == len(rest)


def test_partitions_that_resonate_with_the_mixture_lose_nothing():
    """Batch, partitions and period are all 4: each partition sees one corpus only."""
    corpus, _, instance = order(4, 4, shards=[[3, 4]] * 4, weights=[1] * 4).locate(np.arange(28))
    for k in range(4):
        assert np.array_equal(np.sort(instance[corpus == k]), np.arange(7))


def test_only_a_window_of_shards_is_under_way():
    shards = [[10] * 100]
    _, _, instance = order(window_shards=5, shards=shards, weights=[1]).locate(np.arange(3000))
    shard = (instance // 10).reshape(3, 20, 50)
    windows = [[set(window) for window in one_epoch] for one_epoch in shard.tolist()]
    assert all(len(window) == 5 for one_epoch in windows for window in one_epoch)
    assert windows[0] != windows[1]
    orders = instance.reshape(3, 1000)
    assert (orders[0] == orders[1]).mean() < 0.02
    inside = orders[0].reshape(20, 50)
    assert all((np.abs(np.diff(row)) == 1).mean() < 0.2 for row in inside)  # mixed, not shard after shard
    # Windows of one size are shuffled differently.
    place = [np.argsort(np.argsort(row)).tolist() for row in inside]
    assert len({tuple(row) for row in place}) == 20


@pytest.mark.parametrize("num_ranks", [2, 4, 8, 16])
def test_a_rank_reads_its_part_of_the_shards(num_ranks):
    G, shards = 64, [[20] * 160, [20] * 80]
    slots = np.arange(160 * 20 // G * G)
    rank = slots % G * num_ranks // G

    def most_touched(partitions):
        """Shards of both corpora that the busiest rank reads, as a share of those that all read."""
        corpus, _, instance = order(partitions, G, shards=shards, weights=[2, 1]).locate(slots)
        shard = corpus * 1000 + instance // 20
        return max(len(np.unique(shard[rank == r])) for r in range(num_ranks)) / len(np.unique(shard))

    assert most_touched(1) > 0.7  # nearly all of them
    assert most_touched(8) < 1 / min(8, num_ranks) + 0.05  # its partitions, and shards at the cuts


def test_partition_counts_are_exact():
    mixture = Mixture([(s, [1, 1, 1] if s else [3, 2, 1]) for s in (0, 101, 260)], 3)
    counts = PartitionCounts(mixture, 5, 35)
    slots = np.arange(1500)
    corpus, partition = mixture.locate(slots)[0], partition_of(slots, 5, 35)
    for k in range(3):
        for p in range(5):
            expected = np.cumsum((corpus == k) & (partition == p)) - ((corpus == k) & (partition == p))
            assert np.array_equal(counts.count(k, np.full_like(slots, p), slots), expected)


def test_contiguous_shares_of_a_batch_are_whole_partitions():
    partition = partition_of(np.arange(48, 96), 4, 48)
    assert partition.tolist() == [p for p in range(4) for _ in range(12)]


def test_any_slots_in_any_company():
    for partitions in (1, 8):
        every = np.stack(order(partitions, segments=SEGMENTS).locate(np.arange(12_000)))
        picked = np.random.default_rng(1).permutation(12_000)[:200]
        assert np.array_equal(np.stack(order(partitions, segments=SEGMENTS).locate(picked)), every[:, picked])
        far = order(partitions).locate(np.array([2**50, 2**50 + 1], dtype=np.uint64))
        assert (far[2] < max(SIZES)).all()


def test_with_one_partition_a_later_segment_changes_nothing_before_it():
    before = order(segments=SEGMENTS[:1]).locate(np.arange(1003))
    after = order(segments=SEGMENTS).locate(np.arange(1003))
    assert np.array_equal(np.stack(before), np.stack(after))


def test_many_epochs_in_one_batch():
    corpus, epoch, instance = order(8, 24, shards=[[2, 1], [40]], weights=[5, 1]).locate(np.arange(2400))
    mine = corpus == 0
    assert np.array_equal(np.sort(instance[mine][:1998].reshape(-1, 3), axis=1), np.tile(np.arange(3), (666, 1)))
    assert epoch[mine].max() > 600


def test_a_table_that_would_be_too_large():
    with pytest.raises(ValueError, match="larger power of two"):
        order(9_999, 9_999, weights=[10_001, 7, 3])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(window_shards=0), "window_shards"),
        (dict(window_shards=1, num_partitions=0), "num_partitions"),
        (dict(window_shards=1, num_partitions=5, global_batch=24), "use 4 or 6"),
    ],
)
def test_bad_windows(arguments, message):
    with pytest.raises(ValueError, match=message):
        ShardWindows([1, 2], **arguments)


def test_windows_that_do_not_fit():
    with pytest.raises(ValueError, match="window shuffle"):
        Order([5], [1], 0, "window", windows=[ShardWindows([2, 2], 1)])
    with pytest.raises(ValueError, match="window shuffle"):
        Order([5], [1], 0, "window")
    with pytest.raises(ValueError, match="the same"):
        Order([3, 3], [1, 1], 0, "window", windows=[ShardWindows([3], 1), ShardWindows([3], 1, 2, 4)])
    with pytest.raises(ValueError, match="unknown"):
        Order([5], [1], 0, "none")
