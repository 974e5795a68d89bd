"""Attention over documents and local windows on CUDA, for dtypes and head dims that flash attention does not support.

FlexAttention (arXiv 2412.05496) computes only the blocks of the (T, T) plane in which a query sees a key, and calls the
mask function only in blocks that have both seen and hidden pairs. The table of blocks is computed from the document
numbers at the edges of the blocks, so no tensor of size T x T is needed.

Legend: B batch, T time, n blocks of a row, i block of queries, j block of keys, H query heads, K key and value heads,
E head dim.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


def why_not_flex(device: torch.device, head_size: int, dropout: float) -> str | None:
    """The reason why `flex_attention` cannot be used, or None."""
    if device.type != "cuda":
        return "it needs a GPU: on the CPU it has no backward pass"
    from torch.utils._triton import has_triton

    if not has_triton():
        return "it needs Triton"
    if head_size < 16:
        return f"it supports a head_dim of at least 16, not {head_size}"
    return "it does not support dropout" if dropout else None


def _dense_first(chosen_Bij: Tensor) -> tuple[Tensor, Tensor]:
    """Number of chosen blocks of each row of blocks, (B, 1, n), and their indices, chosen ones first, (B, 1, n, n)."""
    indices = chosen_Bij.int().argsort(dim=-1, descending=True, stable=True)
    return chosen_Bij.sum(-1, dtype=torch.int32)[:, None], indices.int()[:, None]


def flex_block_mask(segments_BT: Tensor, causal: bool, window: int | None) -> BlockMask:
    """The blocks that have a seen pair, and the function that tells which pairs in them are seen.

    Args:
        segments_BT: document number of each token; it does not decrease along a row.
    """
    length = segments_BT.shape[1]
    first_Bn, last_Bn = segments_BT[:, ::BLOCK], segments_BT[:, BLOCK - 1 :: BLOCK]
    if length % BLOCK:
        last_Bn = torch.cat((last_Bn, segments_BT[:, -1:]), dim=1)
    i, j = torch.meshgrid(*[torch.arange(first_Bn.shape[1], device=segments_BT.device)] * 2, indexing="ij")
    seen_Bij = (first_Bn[:, None, :] <= last_Bn[:, :, None]) & (last_Bn[:, None, :] >= first_Bn[:, :, None])
    single_Bn = first_Bn == last_Bn  # blocks of one document
    full_Bij = seen_Bij & single_Bn[:, :, None] & single_Bn[:, None, :]
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
    # Without the option selective checkpointing would not see the compiled function, and compute it again.
    return torch.compile(flex.flex_attention, options={"wrap_inductor_compiled_regions": True})


def flex_attention(q_BTHE: Tensor, k_BTKE: Tensor, v_BTKE: Tensor, block_mask: BlockMask) -> Tensor:
    """Attention under a block mask, (B, T, H, E)."""
    q_BHTE, k_BKTE, v_BKTE = (x.transpose(1, 2) for x in (q_BTHE, k_BTKE, v_BTKE))
    gqa = q_BTHE.shape[2] != k_BTKE.shape[2]
    # Uncompiled, it allocates the (T, T) scores. Inside a compiled model it is compiled with the model.
    function = flex.flex_attention if torch.compiler.is_compiling() else _compiled()
    return function(q_BHTE, k_BKTE, v_BKTE, block_mask=block_mask, enable_gqa=gqa).transpose(1, 2)
