"""The order of the data as a pure function: slot n -> (corpus, epoch, instance).

Nothing here keeps state, and nothing depends on a library's random generator: integer arithmetic on 64 bits only, so
the order is the same on every machine, for every version of every library. A golden test watches over it.
"""

from __future__ import annotations

import math

import numpy as np

PERIOD = 65_536  # slots after which the mixture's proportions come out exactly; weights are rounded to 1/65,536
ROUNDS = 6  # of the Feistel network; 4 suffice for large domains, small ones mix better with more

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHAIN = np.uint64(0xD1342543DE82EF95)  # odd; makes the keys' places count: without it, equal keys would cancel out
_ORDER = 1  # keeps the streams of random numbers for order and for masks (data/objectives.py) apart


def scramble(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), a bijection on uint64; elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(seed: int, *keys) -> np.ndarray:
    """A random uint64 for each combination of `seed` and `keys` (integers or integer arrays that broadcast).

    The only source of randomness in this room: whoever needs a number names what it is for, and nobody draws from a
    shared stream. Only the low 64 bits of each argument count. The result has at least one dimension.
    """
    h = scramble(_as_uint64(seed) + _GOLDEN)
    for key in keys:
        h = scramble(h * _CHAIN + scramble(_as_uint64(key) + _GOLDEN))
    return h


def _as_uint64(value) -> np.ndarray:
    if isinstance(value, int):
        value = np.uint64(value & 0xFFFF_FFFF_FFFF_FFFF)
    return np.atleast_1d(value).astype(np.uint64, copy=False)  # never a scalar: those warn when they wrap around


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each `index` (uint64) goes under the permutation of [0, size) that `key` selects.

    A Feistel network with cycle walking (Black and Rogaway 2002) over [0, rows) x [0, columns), the nearly square grid
    that just holds `size`: what little lands outside goes round again until it is inside, which keeps it a bijection.
    """
    rows = math.isqrt(size - 1) + 1
    columns = np.uint64(-(-size // rows))
    rows, size = np.uint64(rows), np.uint64(size)
    keys = mix(key, np.arange(ROUNDS))
    result = index.astype(np.uint64)
    todo = np.arange(len(result))
    while len(todo):
        row, column = np.divmod(result[todo], columns)
        for number in range(0, ROUNDS, 2):
            row = (row + scramble(column ^ keys[number]) % rows) % rows
            column = (column + scramble(row ^ keys[number + 1]) % columns) % columns
        result[todo] = row * columns + column
        todo = todo[result[todo] >= size]
    return result


def quotas(weights: list[float]) -> np.ndarray:
    """Slots of each corpus in one period: integers in the proportion of `weights` (largest remainder), in lowest terms.

    Raises ValueError for a weight that is not positive, or too small to get one slot of 65,536.
    """
    if not weights or any(not math.isfinite(w) or w <= 0 for w in weights):
        raise ValueError(
            f"the weights of a mixture must be positive numbers, are {weights}: leave out a corpus instead"
        )
    total = math.fsum(weights)
    exact = [w / total * PERIOD for w in weights]
    result = np.array([math.floor(e) for e in exact], dtype=np.int64)
    remainders = sorted(range(len(weights)), key=lambda k: (result[k] - exact[k], k))
    result[remainders[: PERIOD - int(result.sum())]] += 1
    if (result == 0).any():
        least = total / PERIOD
        raise ValueError(
            f"weights {weights}: the smallest that has an effect here is {least:.3g}, 1/{PERIOD} of the sum"
        )
    return result // np.gcd.reduce(result)


class Order:
    """The order of a mixture of corpora with `num_instances[k]` instances and `weights[k]` each.

    In every period the corpora appear exactly in proportion, evenly spread: at any slot each has had its share to
    within about one instance. Each epoch of a corpus takes all its instances once, in a new order when `shuffle`.
    """

    def __init__(self, num_instances: list[int], weights: list[float], seed: int, shuffle: bool):
        if len(num_instances) != len(weights):
            raise ValueError(f"{len(num_instances)} corpora but {len(weights)} weights")
        if any(n < 1 for n in num_instances):
            raise ValueError(f"every corpus of a mixture needs at least one instance, have {num_instances}")
        self.num_instances = np.array(num_instances, dtype=np.uint64)
        self.quotas = quotas(weights)
        self.period = int(self.quotas.sum())
        self.seed, self.shuffle = seed, shuffle
        self._corpus, self._ordinal = self._table()

    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        """For each slot of a period: its corpus, and how many slots of that corpus came before.

        Greedy: each slot goes to the corpus that is furthest behind its share, in integers (ties: the first).
        """
        behind = np.zeros_like(self.quotas)
        counts = [0] * len(self.quotas)
        corpus = np.zeros(self.period, dtype=np.int64)
        ordinal = np.zeros(self.period, dtype=np.uint64)
        if len(counts) == 1:
            return corpus, ordinal
        for slot in range(self.period):
            behind += self.quotas
            k = int(behind.argmax())
            behind[k] -= self.period
            corpus[slot], ordinal[slot] = k, counts[k]
            counts[k] += 1
        return corpus, ordinal

    def locate(self, slots: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(corpus, epoch, instance), each int64 with the length of `slots` (integers >= 0)."""
        period, phase = np.divmod(np.atleast_1d(_as_uint64(slots)), np.uint64(self.period))
        phase = phase.astype(np.int64)
        corpus = self._corpus[phase]
        count = period * self.quotas.astype(np.uint64)[corpus] + self._ordinal[phase]
        size = self.num_instances[corpus]
        epoch, instance = np.divmod(count, size)
        if self.shuffle:
            # One permutation per corpus and epoch; a batch rarely meets more than a few.
            group = epoch * np.uint64(len(self.quotas)) + corpus.astype(np.uint64)
            for number in np.unique(group):
                mine = group == number
                e, k = divmod(int(number), len(self.quotas))
                key = int(mix(self.seed, _ORDER, k, e)[0])
                instance[mine] = permute(instance[mine], int(self.num_instances[k]), key)
        return corpus, epoch.astype(np.int64), instance.astype(np.int64)
