"""One bundle of a shard: the check against its index, and where its documents begin."""

from __future__ import annotations

import zlib
from array import array
from bisect import bisect_left

import numpy as np

from ingot.data.corpus.manifest import Bundle
from ingot.data.corpus.storage import OpenFile, RemoteFile

BLOCK = 1024  # tokens
READ_BYTES = 2**26  # a larger bundle is verified in parts of so many bytes


class VerifiedBundle:
    """A bundle whose checksums were right, with what reading from it needs.

    Attributes:
        offset: where its tokens begin in the file, in bytes.
        state: of the file when the bundle was verified (`OpenFile.state`): a file of another state may be another one.
        origin, end: the range of its tokens in the shard's stream.
        starts: first token of each document, int64.
    """

    __slots__ = ("_blocks", "_sorted", "end", "offset", "origin", "starts", "state")

    def __init__(self, bundle: Bundle, end: int, starts: np.ndarray, state: object):
        self.offset, self.origin, self.end = bundle.tokens_offset, end - bundle.num_tokens, end
        self.state = state
        self._sorted = array("q", starts.tobytes())  # bisect is faster on this than on a numpy array
        self.starts = np.frombuffer(self._sorted, dtype=np.int64)
        # Number of documents that start before each block of tokens: few remain to be searched.
        edges = np.arange(0, bundle.num_tokens + 2 * BLOCK, BLOCK)
        self._blocks = array("q", self.starts.searchsorted(edges).tobytes())

    def between(self, first: int, last: int) -> np.ndarray:
        """The starts in [first, last), counted in tokens of the bundle."""
        block, end_block = first // BLOCK, last // BLOCK
        low = bisect_left(self._sorted, first, self._blocks[block], self._blocks[block + 1])
        high = bisect_left(self._sorted, last, self._blocks[end_block], self._blocks[end_block + 1])
        return self.starts[low:high]


class ChecksumMismatch(ValueError):
    """The part of a bundle at byte `offset` of the file is not what was written."""

    def __init__(self, part: str, bundle: Bundle, size: int, offset: int):
        super().__init__(
            f"the {part} of bundle {bundle.key} ({size} bytes at offset {offset}) do not match their checksum"
        )
        self.offset = offset


class UnknownToken(ValueError):
    """A bundle has a token id that the vocabulary lacks, and was written so: its checksum is right."""

    def __init__(self, bundle: Bundle, highest: int, vocab_size: int):
        super().__init__(
            f"bundle {bundle.key} has token id {highest}, and the vocabulary of the corpus has {vocab_size} ids"
        )
        self.offset = bundle.tokens_offset


def read_bundle(
    file: OpenFile | RemoteFile, bundle: Bundle, end: int, dtype: np.dtype, vocab_size: int, *, check: bool
) -> VerifiedBundle:
    """The bundle that ends at token `end` of the shard's stream. With `check`, all its tokens are read and verified.

    Raises ChecksumMismatch, UnknownToken, and OSError if the file cannot be read.
    """
    doclens = np.empty(bundle.num_documents, dtype="<u4")
    file.read_into(doclens, bundle.doclens_offset)
    if check:
        highest = _verify_tokens(file, bundle, dtype)
        if zlib.crc32(doclens.data) != bundle.doclens_crc32:
            raise ChecksumMismatch("doclens", bundle, doclens.nbytes, bundle.doclens_offset)
        if highest >= vocab_size:
            raise UnknownToken(bundle, highest, vocab_size)
    ends = np.cumsum(doclens, dtype=np.int64)
    if (ends[-1] if len(ends) else 0) != bundle.num_tokens:
        raise ChecksumMismatch("doclens", bundle, doclens.nbytes, bundle.doclens_offset)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends])[:-1]
    return VerifiedBundle(bundle, end, starts, file.state)


def _verify_tokens(file: OpenFile | RemoteFile, bundle: Bundle, dtype: np.dtype) -> int:
    """Read all tokens of a bundle, in parts, and return the highest id. Raises ChecksumMismatch."""
    most = READ_BYTES // dtype.itemsize
    highest = crc32 = 0
    tokens = np.empty(0, dtype=dtype)
    for begin in range(0, bundle.num_tokens, most):
        tokens = np.empty(min(most, bundle.num_tokens - begin), dtype=dtype)
        file.read_into(tokens, bundle.tokens_offset + begin * dtype.itemsize)
        crc32 = zlib.crc32(tokens.data, crc32)
        highest = max(highest, int(tokens.max()))
    if crc32 != bundle.tokens_crc32:
        raise ChecksumMismatch("tokens", bundle, bundle.num_tokens * dtype.itemsize, bundle.tokens_offset)
    if 0 < bundle.num_tokens <= most:
        file.remember(bundle.tokens_offset, tokens)
    return highest
