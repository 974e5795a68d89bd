"""Random numbers as pure functions: a hash of keys, and a permutation that is selected by a key.

Only 64-bit integer arithmetic is used, and no random generator of a library: the values are the same on every machine
and with every version of every library. Golden tests check them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ROUNDS = 6  # of the Feistel network; 4 are enough for large domains, small domains need more

Key = int | np.ndarray  # integers

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHAIN = np.uint64(0xD1342543DE82EF95)  # odd; makes the position of a key matter, else equal keys cancel out


def scramble(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), a bijection on uint64; elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(seed: Key, *keys: Key) -> np.ndarray:
    """A random uint64 for each combination of `seed` and `keys` (integers or integer arrays that broadcast).

    This is the only source of randomness in this package. The first key names the purpose (a stream of its own); no
    shared stream exists. Only the low 64 bits of each argument are used. The result has at least one dimension.
    """
    h = scramble(as_uint64(seed) + _GOLDEN)
    for key in keys:
        h = scramble(h * _CHAIN + scramble(as_uint64(key) + _GOLDEN))
    return h


def uniform(seed: Key, *keys: Key) -> np.ndarray:
    """As `mix`, but float64 in [0, 1)."""
    return (mix(seed, *keys) >> np.uint64(11)) * 2.0**-53


def as_uint64(value: Key) -> np.ndarray:
    """An integer or integer array as uint64, modulo 2^64, with at least one dimension."""
    array = np.uint64(value & 0xFFFF_FFFF_FFFF_FFFF) if isinstance(value, int) else value
    return np.atleast_1d(array).astype(np.uint64, copy=False)  # never a scalar: scalars warn on overflow


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """The image of each `index` (uint64) under the permutation of [0, size) that `key` selects."""
    return permute_groups(index, np.zeros(len(index), dtype=np.int64), [size], np.array([key & (2**64 - 1)], np.uint64))


def permute_groups(index: np.ndarray, group: np.ndarray, sizes: Sequence[int], keys: np.ndarray) -> np.ndarray:
    """`permute` of index[i] with size sizes[group[i]] and key keys[group[i]], all in one call; uint64.

    A Feistel network with cycle walking (Black and Rogaway 2002) over [0, rows) x [0, columns), the smallest nearly
    square grid with at least `size` cells. An index that lands outside of [0, size) goes through the network again
    until it is inside. So the map stays a bijection.
    """
    roots = [math.isqrt(int(size) - 1) + 1 for size in sizes]
    rows_G = np.array(roots, dtype=np.uint64)
    columns_G = np.array([-(-int(size) // root) for size, root in zip(sizes, roots, strict=True)], dtype=np.uint64)
    sizes_G = np.array([int(size) for size in sizes], dtype=np.uint64)
    keys_GR = mix(as_uint64(keys)[:, None], np.arange(ROUNDS))
    result = index.astype(np.uint64)
    assert (result < sizes_G[group]).all()  # else the loop below would never end
    todo = np.arange(len(result))
    while len(todo):
        g = group[todo]
        rows, columns = rows_G[g], columns_G[g]
        row, column = np.divmod(result[todo], columns)
        for number in range(0, ROUNDS, 2):
            row = (row + scramble(column ^ keys_GR[g, number]) % rows) % rows
            column = (column + scramble(row ^ keys_GR[g, number + 1]) % columns) % columns
        result[todo] = row * columns + column
        todo = todo[result[todo] >= sizes_G[g]]
    return result
