"""Attention over documents of different lengths, and to local windows, on CUDA: flash attention as torch carries it.

Legend: N flattened tokens, H query heads, K key and value heads, E head size.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

_SHARES_KEYS = torch.__version__ >= (2, 13)  # has `enable_gqa`


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def why_not_varlen(device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> str | None:
    """What keeps `varlen_attention` from being used, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    if _capability(device) < (8, 0):
        return f"it needs compute capability 8.0, and this GPU has {'.'.join(map(str, _capability(device)))}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it takes bf16 and fp16, not {dtype}"
    # Consumer GPUs have too little shared memory for the backward pass of the largest heads.
    largest = 256 if _capability(device) in ((8, 0), (9, 0), (10, 0)) else 192
    if head_size % 8 or head_size > largest:
        return f"it takes head sizes that are multiples of 8 up to {largest}, not {head_size}"
    return "it has no dropout" if dropout else None


def varlen_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, cu_seqlens: Tensor, longest: int, causal: bool, window: int | None
) -> Tensor:
    """Attention inside each document of the flattened tokens, (N, H, E).

    Query head h reads key head h // (H / K).

    Args:
        cu_seqlens: int32 (documents + 1,) on the device; repeated ends are empty documents.
        longest: an upper bound of the documents' lengths; a smaller one saves nothing but empty thread blocks.
    """
    from torch.nn.attention.varlen import varlen_attn  # importing it takes seconds, which only GPUs need to spend

    more = {}
    share = q_NHE.shape[1] // k_NKE.shape[1]
    if share > 1 and _SHARES_KEYS:
        more["enable_gqa"] = True
    elif share > 1:
        k_NKE, v_NKE = (x.repeat_interleave(share, dim=1) for x in (k_NKE, v_NKE))
    left = -1 if window is None else window
    sides = (left, 0 if causal else left)
    return varlen_attn(q_NHE, k_NKE, v_NKE, cu_seqlens, cu_seqlens, longest, longest, window_size=sides, **more)
