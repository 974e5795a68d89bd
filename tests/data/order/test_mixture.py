import hashlib

import numpy as np
import pytest

from ingot.data.order.mixture import Mixture, PeriodTable, quotas, quotas_with_zeros
from ingot.data.order.order import Order

SEGMENTS = [(0, [3, 1, 0]), (1001, [1, 1, 2]), (1777, [0, 1, 1]), (5003, [0.6, 0.3, 0.1])]


def test_golden_segments():
    order = Order([1000, 77, 12345], None, 1234, True, segments=SEGMENTS)
    content = np.stack(order.locate(np.arange(20_000))).astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "01a0653e23c792a5"


def test_one_segment_is_the_plain_order():
    plain = Order([50, 70], [2, 1], 3, True).locate(np.arange(500))
    segment = Order([50, 70], None, 3, True, segments=[(0, [2, 1])]).locate(np.arange(500))
    assert np.array_equal(np.stack(plain), np.stack(segment))


def test_epochs_stay_whole_when_weights_change():
    corpus, epoch, instance = Order([90, 40, 301], None, 3, True, segments=SEGMENTS).locate(np.arange(12_000))
    for k, size in enumerate([90, 40, 301]):
        mine = corpus == k
        assert np.array_equal(epoch[mine], np.arange(mine.sum()) // size)
        for e in range(mine.sum() // size):
            assert np.array_equal(np.sort(instance[mine & (epoch == e)]), np.arange(size))


def test_a_later_segment_changes_nothing_before_it():
    before = Order([90, 40, 301], None, 3, True, segments=SEGMENTS[:2]).locate(np.arange(1777))
    after = Order([90, 40, 301], None, 3, True, segments=SEGMENTS).locate(np.arange(1777))
    assert np.array_equal(np.stack(before), np.stack(after))


def test_proportions_are_exact_from_the_start_of_each_segment():
    mixture = Mixture(SEGMENTS, 3)
    for s, (start, weights) in enumerate(SEGMENTS):
        stop = SEGMENTS[s + 1][0] if s + 1 < len(SEGMENTS) else start + 5000
        corpus = mixture.locate(np.arange(start, stop))[0]
        counts = np.cumsum(corpus[:, None] == np.arange(3), axis=0)
        due = np.arange(1, stop - start + 1)[:, None] * (mixture.tables[s].quotas / mixture.tables[s].period)
        assert np.abs(counts - due).max() <= 1
        assert not counts[-1][np.array(weights) == 0].any()
        period = mixture.tables[s].period
        assert s == 3 or np.array_equal(counts[period - 1], mixture.tables[s].quotas)


def test_slot_is_the_inverse_of_locate():
    mixture = Mixture([*SEGMENTS, (9000, [1, 0, 0])], 3)
    slots = np.arange(10_000)
    corpus, ordinal = mixture.locate(slots)
    for slot in range(0, 10_000, 7):
        assert mixture.slot(int(corpus[slot]), int(ordinal[slot])) == slot
    assert mixture.slot(1, int((corpus == 1).sum())) is None


def test_count_goes_on_both_ways():
    table = PeriodTable(quotas([5, 2, 1]))
    pattern = np.tile(table.corpus, 9)
    for k in range(3):
        for slots in range(-4 * table.period, 5 * table.period):
            low, high = sorted((0, slots))
            number = (pattern[4 * table.period + low : 4 * table.period + high] == k).sum()
            assert table.count(k, slots) == (number if slots >= 0 else -number)


def test_zero_weights():
    assert quotas_with_zeros([0, 1, 0, 3]).tolist() == [0, 1, 0, 3]
    with pytest.raises(ValueError, match="at least one"):
        quotas_with_zeros([0, 0])


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([], "start at slot 0"),
        ([(5, [1, 1])], "start at slot 0"),
        ([(0, [1, 1]), (7, [1, 1]), (7, [1, 2])], "each other one at a later slot"),
        ([(0, [1, 1]), (7, [1])], "2 corpora but 1 weights from slot 7"),
        ([(0, [1, 0]), (7, [2, 0])], "corpus 1 has weight 0 in every segment"),
        ([(0, [1, 0])], "remove it"),
        ([(0, [1, 1]), (7, [1, -1])], "positive"),
    ],
)
def test_bad_segments(segments, message):
    with pytest.raises(ValueError, match=message):
        Order([5, 5], None, 0, True, segments=segments)
