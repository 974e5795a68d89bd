"""Randomness as pure functions: a hash of keys, and a permutation that a key selects.

Integer arithmetic on 64 bits only and no library's random generator, so that the values are the same on every machine,
for every version of every library. Golden tests watch over them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ROUNDS = 6  # of the Feistel network; 4 suffice for large domains, small ones mix better with more

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_CHAIN = np.uint64(0xD1342543DE82EF95)  # odd; makes the keys' places count: without it, equal keys would cancel out


def scramble(x: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea, Flood 2014), a bijection on uint64; elementwise."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def mix(seed: int | np.ndarray, *keys) -> np.ndarray:
    """A random uint64 for each combination of `seed` and `keys` (integers or integer arrays that
    broadcast).

    The only source of randomness in this room: whoever needs a number names what it is for, and nobody draws from a
    shared stream. Only the low 64 bits of each argument count. The result has at least one dimension.
    """
    h = scramble(as_uint64(seed) + _GOLDEN)
    for key in keys:
        h = scramble(h * _CHAIN + scramble(as_uint64(key) + _GOLDEN))
    return h


def uniform(seed: int, *keys) -> np.ndarray:
    """Like `mix`, as float64 in [0, 1)."""
    return (mix(seed, *keys) >> np.uint64(11)) * 2.0**-53


def as_uint64(value) -> np.ndarray:
    """An integer or integer array as an array of uint64, modulo 2^64; at least one dimension."""
    if isinstance(value, int):
        value = np.uint64(value & 0xFFFF_FFFF_FFFF_FFFF)
    return np.atleast_1d(value).astype(np.uint64, copy=False)  # never a scalar: those warn when they wrap around


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each `index` (uint64) goes under the permutation of [0, size) that `key` selects."""
    return permute_groups(index, np.zeros(len(index), dtype=np.int64), [size], np.array([key & (2**64 - 1)], np.uint64))


def permute_groups(index: np.ndarray, group: np.ndarray, sizes: Sequence[int], keys: np.ndarray) -> np.ndarray:
    """`permute` of index[i] with size sizes[group[i]] and key keys[group[i]], all at once; uint64.

    A Feistel network with cycle walking (Black and Rogaway 2002) over [0, rows) x [0, columns), the nearly square grid
    that just holds `size`: what little lands outside goes round again until it is inside, which keeps it a bijection.
    """
    roots = [math.isqrt(int(size) - 1) + 1 for size in sizes]
    rows_G = np.array(roots, dtype=np.uint64)
    columns_G = np.array([-(-int(size) // root) for size, root in zip(sizes, roots, strict=True)], dtype=np.uint64)
    sizes_G = np.array([int(size) for size in sizes], dtype=np.uint64)
    keys_GR = mix(as_uint64(keys)[:, None], np.arange(ROUNDS))
    result = index.astype(np.uint64)
    assert (result < sizes_G[group]).all()  # or it would walk for ever
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
