import hashlib

import numpy as np
import pytest

from ingot.data.order.keyed_random import mix, permute, scramble
from ingot.data.order.mixture import PERIOD, quotas
from ingot.data.order.order import Order


def test_golden_mix():
    # The first output of splitmix64 for seed 0, as its authors publish it.
    assert int(mix(0)[0]) == 0xE220A8397B1DCDAF
    assert [hex(int(mix(1, 2, 3)[0])), hex(int(mix(-1, 2**63)[0]))] == ["0x4c428994aef62f5e", "0x517cdf1ae8f640fc"]


def test_golden_order():
    """Changing these values changes what every run trains on: raise the format version and say so."""
    order = Order([1000, 77, 12345], [0.5, 0.2, 0.3], seed=1234, shuffle=True)
    corpus, epoch, instance = order.locate(np.arange(20_000))
    first = [(0, 0, 769), (2, 0, 4028), (1, 0, 27), (0, 0, 37), (2, 0, 4497), (0, 0, 882)]
    assert list(zip(corpus[:6].tolist(), epoch[:6].tolist(), instance[:6].tolist(), strict=True)) == first
    content = np.stack([corpus, epoch, instance]).astype("<i8").tobytes()
    assert hashlib.sha256(content).hexdigest()[:16] == "e1205ff3af1690d9"


def test_scramble_is_not_degenerate():
    values = scramble(np.arange(1 << 16, dtype=np.uint64))
    assert len(np.unique(values)) == 1 << 16
    ones = np.unpackbits(values.view(np.uint8)).mean()
    assert abs(ones - 0.5) < 0.002


def test_mix_depends_on_each_key_and_their_order():
    values = [int(mix(*keys)[0]) for keys in [(0,), (1,), (0, 0), (0, 1), (1, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]]
    assert len(set(values)) == len(values)
    assert mix(3, np.arange(4)[:, None], np.arange(5)).shape == (4, 5)
    assert int(mix(3, np.array([7, 9]), 2)[1]) == int(mix(3, 9, 2)[0])


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 64, 65, 1000, 99_991, 1 << 17])
def test_permutation_is_a_bijection(size):
    image = permute(np.arange(size, dtype=np.uint64), size, key=42)
    assert np.array_equal(np.sort(image), np.arange(size))


@pytest.mark.parametrize("size", [2**40 + 15, 10**11])
def test_large_permutations_stay_inside_and_apart(size):
    image = permute(np.arange(size - 10_000, size, dtype=np.uint64), size, key=7)
    assert image.max() < size
    assert len(np.unique(image)) == 10_000


def test_small_permutations_are_uniform():
    counts = {}
    for key in range(1800):
        image = tuple(permute(np.arange(3, dtype=np.uint64), 3, key).tolist())
        counts[image] = counts.get(image, 0) + 1
    assert len(counts) == 6
    assert min(counts.values()) > 220


def test_each_epoch_takes_every_instance_once_in_a_new_order():
    order = Order([500], [1.0], seed=5, shuffle=True)
    _, epoch, instance = order.locate(np.arange(1500))
    assert np.array_equal(epoch, np.arange(1500) // 500)
    epochs = instance.reshape(3, 500)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(500), (3, 1)))
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (epochs[a] == epochs[b]).mean() < 0.03
    neighbours = np.abs(np.diff(epochs[0]))
    assert (neighbours == 1).mean() < 0.03
    other = Order([500], [1.0], seed=6, shuffle=True).locate(np.arange(500))[2]
    assert (other == epochs[0]).mean() < 0.03


def test_corpora_of_one_size_have_different_orders():
    corpus, _, instance = Order([500, 500], [1, 1], seed=5, shuffle=True).locate(np.arange(1000))
    assert (instance[corpus == 0] == instance[corpus == 1]).mean() < 0.03


def test_any_slots_in_any_company():
    order = Order([50, 7], [3, 1], seed=5, shuffle=True)
    every = np.stack(order.locate(np.arange(1000)))
    picked = np.random.default_rng(0).permutation(1000)[:100]
    assert np.array_equal(np.stack(order.locate(picked)), every[:, picked])
    far = order.locate(np.array([2**50, 2**50 + 1], dtype=np.uint64))
    assert (far[2] < 50).all()


def test_sequential():
    _, epoch, instance = Order([5], [1.0], seed=9, shuffle=False).locate(np.arange(12))
    assert instance.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert epoch.tolist() == [0] * 5 + [1] * 5 + [2, 2]


@pytest.mark.parametrize("weights", [[1.0], [1, 1], [0.5, 0.3, 0.1, 0.07, 0.03], [100, 1, 1], [0.0001, 1.0]])
def test_mixture_is_exact_in_each_period_and_close_everywhere(weights):
    order = Order([1000] * len(weights), weights, seed=0, shuffle=True)
    corpus = order.locate(np.arange(order.period * 2))[0]
    share = order.quotas / order.period
    assert np.abs(share - np.array(weights) / sum(weights)).max() < 1 / PERIOD
    counts = np.cumsum(corpus[:, None] == np.arange(len(weights)), axis=0)
    assert np.array_equal(counts[order.period - 1], order.quotas)
    expected = np.arange(1, len(corpus) + 1)[:, None] * share
    assert np.abs(counts - expected).max() <= 1.0


def test_equal_weights_give_a_short_table():
    assert quotas([2, 2]).tolist() == [1, 1]


@pytest.mark.parametrize("weights", [[], [0.0], [1.0, -1.0], [float("nan")], [1.0, 1e-7]])
def test_bad_weights(weights):
    with pytest.raises(ValueError, match="weights"):
        quotas(weights)


def test_empty_corpus():
    with pytest.raises(ValueError, match="at least one instance"):
        Order([10, 0], [1, 1], seed=0, shuffle=True)
