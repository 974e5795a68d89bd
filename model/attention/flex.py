"""Attention over documents and to local windows on CUDA in types and head sizes that flash attention refuses.

FlexAttention (arXiv 2412.05496) visits the blocks of the (T, T) plane in which a query sees a key, and asks the
mask function only where a block holds both seen and unseen pairs. The table of blocks is built from the documents'
numbers at the blocks' edges: nothing of size T x T is made.

Legend: B batch, T time, n blocks of a row, i block of queries, j block of keys, H query heads, K key and value heads,
E head size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


def why_not_flex(device: torch.device, head_size: int, dropout: float) -> str | None:
    """What keeps `flex_attention` from being used, or None."""
    if device.type != "cuda":
        return "it needs a GPU: on the CPU it has no backward pass"
    from torch.utils._triton import has_triton

    if not has_triton():
        return "it needs Triton"
    if head_size < 16:
        return f"it takes head sizes from 16 on, not {head_size}"
    return "it has no dropout" if dropout else None


def _dense_first(chosen_Bij: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks of each row of blocks, (B, 1, n), and their places, chosen ones first, (B, 1, n, n)."""
    places = chosen_Bij.int().argsort(dim=-1, descending=True, stable=True)
    return chosen_Bij.sum(-1, dtype=torch.int32)[:, None], places.int()[:, None]


def flex_block_mask(segments_BT: Tensor, causal: bool, window: int | None) -> BlockMask:
    """The blocks that hold a seen pair, and the function that tells the seen pairs in them.

    Args:
        segments_BT: number of the document of each token, not falling along a row.
    """
    length = segments_BT.shape[1]
    first_Bn, last_Bn = segments_BT[:, ::BLOCK], segments_BT[:, BLOCK - 1 :: BLOCK]
    if length % BLOCK:
        last_Bn = torch.cat((last_Bn, segments_BT[:, -1:]), dim=1)
    i, j = torch.meshgrid(*[torch.arange(first_Bn.shape[1], device=segments_BT.device)] * 2, indexing="ij")
    seen_Bij = (first_Bn[:, None, :] <= last_Bn[:, :, None]) & (last_Bn[:, None, :] >= first_Bn[:, :, None])
    one_Bn = first_Bn == last_Bn
    full_Bij = seen_Bij & one_Bn[:, :, None] & one_Bn[:, None, :]
    if length % BLOCK:
        full_Bij = full_Bij & (torch.maximum(i, j) < length // BLOCK)
    if causal:
        seen_Bij, full_Bij = seen_Bij & (j <= i), full_Bij & (j < i)
    if window is not None:
        apart = (i - j).abs()
        seen_Bij = seen_Bij & ((apart - 1) * BLOCK < window)
        full_Bij = full_Bij & ((apart + 1) * BLOCK <= window + 1)

    def sees(b, h, q, k):
        seen = segments_BT[b, q] == segments_BT[b, k]
        if causal:
            seen = seen & (k <= q)
        if window is not None:
            seen = seen & ((q - k).abs() <= window)
        return seen

    partly, full = _dense_first(seen_Bij & ~full_Bij), _dense_first(full_Bij)
    return BlockMask.from_kv_blocks(*partly, *full, BLOCK_SIZE=BLOCK, mask_mod=sees, seq_lengths=(length, length))


@cache
def _compiled():
    return torch.compile(flex.flex_attention)


def flex_attention(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, block_mask: BlockMask) -> Tensor:
    """Attention to what the mask shows, (B, T, H, E)."""
    q_BHTE, k_BKTE, v_BKTE = (x.transpose(1, 2) for x in (q_BTHE, k_BTKE, v_BTKE))
    gqa = q_BTHE.shape[2] != k_BTKE.shape[2]
    # Uncompiled, it makes the (T, T) scores; inside a compiled model it is compiled with it.
    function = flex.flex_attention if torch.compiler.is_compiling() else _compiled()
    return function(q_BHTE, k_BKTE, v_BKTE, block_mask=block_mask, enable_gqa=gqa).transpose(1, 2)
