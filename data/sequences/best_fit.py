"""Best-fit packing: a row holds several whole documents, and the rest of the row is padding.

Best-fit decreasing (Ding et al. 2024, "Fewer Truncations Improve Language Modeling"): documents longer than a row are
first split into pieces of the length of a row. Then each piece, the longest first, goes into the row where it leaves
the least space. A pure function of the document lengths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Bins:
    """Rows of at most `length` tokens, each a list of pieces of documents.

    The pieces of bin b are offsets[b] to offsets[b + 1]. Piece i is the tokens [starts[i], starts[i] + lengths[i]) of
    the stream of all documents, one after another. Within a bin the pieces keep the stream's order.
    """

    length: int
    offsets: np.ndarray  # int64 [num_bins + 1]
    starts: np.ndarray  # int64 [num_pieces]
    lengths: np.ndarray  # int32 [num_pieces]

    @property
    def num_bins(self) -> int:
        return len(self.offsets) - 1

    @property
    def num_tokens(self) -> int:
        return int(self.lengths.sum(dtype=np.int64))

    @property
    def efficiency(self) -> float:
        """Tokens divided by the capacity of all rows; the rest is padding. 1 if there are no rows."""
        return self.num_tokens / (self.num_bins * self.length) if self.num_bins else 1.0

    def pieces(self, number: int) -> list[tuple[int, int]]:
        """(start, stop) of each piece of a bin, in tokens of the stream."""
        here = slice(self.offsets[number], self.offsets[number + 1])
        starts = self.starts[here]
        return list(zip(starts.tolist(), (starts + self.lengths[here]).tolist(), strict=True))

    def arrays(self) -> dict[str, np.ndarray]:
        """Arrays for numpy.savez, without pickle; `Bins.from_arrays` reads them."""
        return {
            "length": np.array(self.length, dtype=np.int64),
            "offsets": self.offsets,
            "starts": self.starts,
            "lengths": self.lengths,
        }

    @staticmethod
    def from_arrays(arrays: Mapping[str, np.ndarray]) -> Bins:
        return Bins(int(arrays["length"]), arrays["offsets"], arrays["starts"], arrays["lengths"])


def pack(doclens: np.ndarray, length: int) -> Bins:
    """Best-fit decreasing of documents with `doclens` tokens into rows of `length`. Empty documents are skipped.

    Every token is in exactly one bin. Full rows come first, then the others in the order in which they were opened.
    Raises ValueError for a `length` below 1.
    """
    if length < 1:
        raise ValueError(f"rows must hold at least one token, length is {length}")
    starts, lengths = _split_documents(np.asarray(doclens, dtype=np.int64), length)
    full = np.flatnonzero(lengths == length)
    rest = np.flatnonzero(lengths < length)
    rest = rest[np.argsort(-lengths[rest], kind="stable")]
    bins = np.empty(len(lengths), dtype=np.int64)
    bins[full] = np.arange(len(full))
    bins[rest] = _best_fit(lengths[rest].tolist(), length)
    bins[rest] += len(full)
    order = np.argsort(bins, kind="stable")
    num_bins = int(bins.max()) + 1 if len(bins) else 0
    offsets = np.append(0, np.cumsum(np.bincount(bins, minlength=num_bins))).astype(np.int64)
    return Bins(length, offsets, starts[order], lengths[order].astype(np.int32))


def _split_documents(doclens: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Start and length of each piece, in the stream's order."""
    num_pieces = -(-doclens // length)
    document = np.repeat(np.arange(len(doclens)), num_pieces)
    within = np.arange(len(document)) - np.repeat(np.cumsum(num_pieces) - num_pieces, num_pieces)
    first = within * length
    starts = (np.cumsum(doclens) - doclens)[document] + first
    return starts, np.minimum(doclens[document] - first, length)


def _best_fit(sizes: list[int], length: int) -> list[int]:
    """The bin of each piece, in descending order of `sizes`.

    `open_bins[space]` are the bins with so much space left. Bit `space` of `spaces` is set if there is one: the
    smallest sufficient space is the lowest set bit from `size` on.
    """
    open_bins: list[list[int]] = [[] for _ in range(length)]
    spaces = 0
    num_bins = 0
    result = []
    for size in sizes:
        fitting = spaces >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            bins = open_bins[space]
            chosen = bins.pop()
            if not bins:
                spaces ^= 1 << space
        else:
            space, chosen = length, num_bins
            num_bins += 1
        if space > size:
            open_bins[space - size].append(chosen)
            spaces |= 1 << (space - size)
        result.append(chosen)
    return result
