import hashlib
import time

import numpy as np
import pytest

from ingot.data.sequences.best_fit import Bins, pack
from ingot.data.sequences.packing import describe_rows


def doclens(number, kind="lognormal"):
    draw = np.random.default_rng(3)
    if kind == "lognormal":
        return np.maximum(2, draw.lognormal(6.4, 1.0, number)).astype(np.int64)
    if kind == "heavy":
        return np.minimum(1_000_000, 100 * (1 + draw.pareto(1.2, number))).astype(np.int64)
    return draw.integers(2, 3001, number)


def test_golden_bins():
    bins = pack(np.arange(1, 5000) * 7919 % 3001, 2048)
    content = b"".join(array.astype("<i8").tobytes() for array in bins.arrays().values())
    assert hashlib.sha256(content).hexdigest()[:16] == "b4c1ebfd7ee9c396"


def test_by_hand():
    # 13 is cut into 10 and 3; then 7 + 3, and 6 + 4 rather than 7 + 2 is what best fit finds.
    bins = pack(np.array([13, 4, 0, 7, 6]), 10)
    assert [bins.pieces(b) for b in range(bins.num_bins)] == [[(0, 10)], [(10, 13), (17, 24)], [(13, 17), (24, 30)]]
    assert bins.efficiency == 1.0
    assert bins.num_tokens == 30


def test_best_fit_takes_the_smallest_space_that_is_large_enough():
    # 6 and 7 leave 4 and 3: the 2 goes to the 7, ...
    bins = pack(np.array([6, 7, 2]), 10)
    assert [bins.pieces(b) for b in range(bins.num_bins)] == [[(6, 13), (13, 15)], [(0, 6)]]
    # ... and among the longest first: 6 + 4, 5 + 3 + 2.
    assert pack(np.array([2, 5, 3, 6, 4]), 10).num_bins == 2


@pytest.mark.parametrize("kind", ["lognormal", "heavy", "uniform"])
@pytest.mark.parametrize("length", [1, 7, 512, 2048])
def test_every_token_is_in_one_bin_and_short_documents_stay_whole(kind, length):
    lengths = doclens(300, kind) if length > 7 else doclens(300, kind) % 50
    bins = pack(lengths, length)
    pieces = sorted(piece for b in range(bins.num_bins) for piece in bins.pieces(b))
    stream = np.zeros(int(lengths.sum()), dtype=np.int64)
    for start, stop in pieces:
        stream[start:stop] += 1
        assert 0 < stop - start <= length
    assert (stream == 1).all()
    ends = np.cumsum(lengths)
    expected = sum(-(-int(n) // length) for n in lengths)
    assert len(pieces) == expected  # nothing is cut but what must be
    documents = np.searchsorted(ends, [start for start, _ in pieces], side="right")
    assert np.array_equal(documents, np.searchsorted(ends, [stop - 1 for _, stop in pieces], side="right"))
    for b in range(bins.num_bins):
        here = bins.pieces(b)
        assert here == sorted(here)
        assert sum(stop - start for start, stop in here) <= length


@pytest.mark.parametrize("kind", ["lognormal", "heavy", "uniform"])
def test_efficiency(kind):
    for number in (1_000, 10_000):
        bins = pack(doclens(number, kind), 2048)
        assert bins.efficiency >= 0.98
        assert bins.efficiency == bins.num_tokens / (bins.num_bins * 2048)


def test_fast_enough():
    lengths = doclens(100_000)
    start = time.perf_counter()
    pack(lengths, 2048)
    assert time.perf_counter() - start < 3


def test_saved_without_pickle(tmp_path):
    bins = pack(doclens(500), 2048)
    np.savez(tmp_path / "bins.npz", **bins.arrays())
    with np.load(tmp_path / "bins.npz", allow_pickle=False) as arrays:
        again = Bins.from_arrays(arrays)
    assert again.length == 2048
    assert [again.pieces(b) for b in range(again.num_bins)] == [bins.pieces(b) for b in range(bins.num_bins)]


def test_nothing_to_pack():
    for lengths in ([], [0, 0]):
        bins = pack(np.array(lengths, dtype=np.uint32), 8)
        assert (bins.num_bins, bins.efficiency) == (0, 1.0)
    with pytest.raises(ValueError, match="at least one token"):
        pack(np.array([1]), 0)


def test_arrange():
    starts, positions, cu_seqlens = describe_rows([[2, 3], [6], [], [1, 5]], 6)
    assert starts.astype(int).tolist() == [
        [1, 0, 1, 0, 0, 1],  # the padding begins a segment of its own
        [1, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
    ]
    assert positions.tolist() == [[0, 1, 0, 1, 2, 0], [0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, 5], [0, 0, 1, 2, 3, 4]]
    assert cu_seqlens.tolist() == [0, 2, 5, 6, 12, 18, 19, 24]
