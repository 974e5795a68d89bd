"""A 64-bit digest of a logical tensor that does not depend on how it is cut over ranks.

digest = sum over elements of (bits + 1) * m_0(i_0) * m_1(i_1) * ... mod 2**64

where bits are the element's own bits as an integer, i_d is its index along dim d in the whole tensor, and m_d is an odd
pseudo-random multiplier for each dim (the SplitMix64 finaliser, Steele et al. 2014, of the index and a key made from
the tensor's name and the dim). The digest of a tensor is the sum of the digests of its parts, so ranks add theirs. A
single wrong element always shows, since odd multipliers lose nothing. It finds accidents, not attacks.

The multipliers of a dim are shared by all rows along it, so that an element costs a multiplication and an addition.
"""

import hashlib

import torch

from ingot.parallel.catalog import Shard

_CHUNK = 1 << 17  # elements at a time: what fits into a core's cache
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(shard: Shard) -> int:
    """The part that `shard` contributes to its tensor's digest, in [0, 2**64). On the tensor's own device."""
    tensor, box = shard.tensor.detach(), shard.rectangle
    if not box.numel:
        return 0
    bits = tensor.contiguous().view(_BITS[tensor.element_size()])
    factors = [
        _multipliers(shard.name, dim, start, size, tensor.device)
        for dim, (start, size) in enumerate(zip(box.offset, box.shape, strict=True))
    ] or [_multipliers(shard.name, 0, 0, 1, tensor.device)]
    columns = factors.pop()
    rows = torch.ones(1, dtype=torch.int64, device=tensor.device)
    for factor in factors:
        rows = (rows[:, None] * factor).reshape(-1)
    sums = _sums_of_rows(bits.reshape(len(rows), len(columns)), columns)
    return int((sums * rows).sum()) % 2**64


def _sums_of_rows(bits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """For each row, the sum of (bits + 1) * columns, int64, which wraps."""
    sums = torch.full((bits.shape[0],), int(columns.sum()), dtype=torch.int64, device=bits.device)
    width = min(bits.shape[1], _CHUNK)
    height = max(1, _CHUNK // width)
    for top in range(0, bits.shape[0], height):
        for left in range(0, bits.shape[1], width):
            part = bits[top : top + height, left : left + width]
            sums[top : top + height] += (part * columns[left : left + width]).sum(-1)
    return sums


def _multipliers(name: str, dim: int, start: int, size: int, device: torch.device) -> torch.Tensor:
    """m_dim of the indices [start, start + size)."""
    text = f"{dim}/{name}".encode()
    key = int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
    return _mix(torch.arange(start, start + size, dtype=torch.int64, device=device) + key) | 1


def _mix(x: torch.Tensor) -> torch.Tensor:
    x = (x ^ _shift(x, 30)) * -4658895280553007687  # 0xBF58476D1CE4E5B9 as a signed number
    x = (x ^ _shift(x, 27)) * -7723592293110705685  # 0x94D049BB133111EB
    return x ^ _shift(x, 31)


def _shift(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift right: torch's own is arithmetic on signed integers."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
