import itertools

import pytest
import torch

from ingot.parallel.tensor_shards import Rectangle, flat_range_rectangles, flat_shards


@pytest.mark.parametrize("shape", [(7,), (3, 5), (1, 6), (4, 1), (2, 3, 4), (3, 1, 2)])
def test_any_flat_range_is_cut_into_rectangles_that_hold_it_in_order(shape):
    whole = torch.arange(torch.Size(shape).numel()).view(shape)
    for start, stop in itertools.combinations(range(whole.numel() + 1), 2):
        rectangles = flat_range_rectangles(shape, start, stop)
        assert len(rectangles) <= 2 * len(shape) - 1
        parts = [
            whole[tuple(slice(o, o + n) for o, n in zip(b.offset, b.shape, strict=True))].flatten() for b in rectangles
        ]
        assert torch.cat(parts).tolist() == list(range(start, stop))


def test_a_matrix_range_takes_at_most_three_rectangles_and_an_empty_one_none():
    assert len(flat_range_rectangles((10, 10), 5, 95)) == 3
    assert flat_range_rectangles((10, 10), 20, 40) == [Rectangle((2, 0), (2, 10))]
    assert flat_range_rectangles((10, 10), 7, 7) == []


def test_flat_shards_are_live_views():
    flat = torch.zeros(7)
    for shard in flat_shards("w", (3, 5), 4, flat):
        shard.tensor.add_(1)
    assert flat.tolist() == [1.0] * 7


def test_intersection():
    a, b = Rectangle((0, 2), (4, 4)), Rectangle((3, 0), (5, 3))
    common = a.intersect(b)
    assert common == Rectangle((3, 2), (1, 1)) == b.intersect(a)
    assert common.slices_within(a) == (slice(3, 4), slice(0, 1))
    assert a.intersect(Rectangle((4, 2), (1, 1))) is None
