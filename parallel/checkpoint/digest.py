"""A 64-bit digest of a logical tensor that does not depend on how it is divided over ranks.

digest = sum over elements of (bits + 1) * m_0(i_0) * m_1(i_1) * ... mod 2**64

where bits are the bits of the element as an integer, i_d is its index along dim d in the whole tensor, and m_d is an
odd pseudo-random multiplier for each dim: the SplitMix64 finaliser (Steele et al. 2014) of the index and of a key made
from the tensor's name and the dim. The digest of a tensor is the sum of the digests of its parts, so ranks add theirs.
One wrong element always changes the digest, because multiplication by an odd number is invertible. The digest finds
accidental damage, not attacks.

All rows along a dim use the same multipliers, so the cost is one multiplication and one addition per element.
"""

import hashlib

import torch

from ingot.parallel.tensor_shards import TensorShard

_CHUNK = 1 << 17  # elements at a time, so that they fit into the cache of a core
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def digest(shard: TensorShard) -> int:
    """What `shard` adds to the digest of its logical tensor, in [0, 2**64). Computed on the device of the shard."""
    tensor, rectangle = shard.tensor.detach(), shard.rectangle
    if not rectangle.numel:
        return 0
    bits = tensor.contiguous().view(_BITS[tensor.element_size()])
    factors = [
        _multipliers(shard.name, dim, start, size, tensor.device)
        for dim, (start, size) in enumerate(zip(rectangle.offset, rectangle.shape, strict=True))
    ] or [_multipliers(shard.name, 0, 0, 1, tensor.device)]
    columns = factors.pop()
    rows = torch.ones(1, dtype=torch.int64, device=tensor.device)
    for factor in factors:
        rows = (rows[:, None] * factor).reshape(-1)
    sums = _sums_of_rows(bits.reshape(len(rows), len(columns)), columns)
    return int((sums * rows).sum()) % 2**64


def _sums_of_rows(bits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """For each row the sum of (bits + 1) * columns, as int64 that overflows, which is arithmetic modulo 2**64."""
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
    """Logical shift right. torch's own shift of signed integers is arithmetic."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
