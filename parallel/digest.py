"""A 64-bit digest of a logical tensor that does not depend on how it is cut over ranks.

digest = sum over elements of (bits + 1) * m(position) mod 2**64

where bits are the element's own bits as an integer, position is its row-major index in the whole tensor, and m is an
odd pseudo-random multiplier (the SplitMix64 finaliser, Steele et al. 2014, of a key made from the tensor's name). The
digest of a tensor is the sum of the digests of its parts, so ranks add theirs. It finds accidents, not attacks.
"""

import hashlib

import torch

from parallel.catalog import Rectangle, Shard

_CHUNK = 1 << 20  # elements at a time: bounds the memory to a few tens of MiB
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(shard: Shard) -> int:
    """The part that `shard` contributes to its tensor's digest, in [0, 2**64)."""
    key = int.from_bytes(hashlib.blake2b(shard.name.encode(), digest_size=8).digest(), "little", signed=True)
    bits = shard.tensor.detach().contiguous().view(_BITS[shard.tensor.element_size()]).reshape(-1)
    total = 0
    for start in range(0, bits.numel(), _CHUNK):
        part = bits[start : start + _CHUNK].to(torch.int64)
        positions = _positions(shard, start, start + part.numel(), part.device)
        total += int(((part + 1) * (_mix(positions + key) | 1)).sum())
    return total % 2**64


def _positions(shard: Shard, start: int, stop: int, device: torch.device) -> torch.Tensor:
    """Row-major indices in the whole tensor of elements [start, stop) of the rectangle."""
    box: Rectangle = shard.rectangle
    local = torch.arange(start, stop, dtype=torch.int64, device=device)
    index, stride = torch.zeros_like(local), 1
    for size, offset, total in zip(
        reversed(box.shape), reversed(box.offset), reversed(shard.global_shape), strict=True
    ):
        index += (local % size + offset) * stride
        local = local // size
        stride *= total
    return index


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9 as a signed number
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift right: torch's own is arithmetic on signed integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
