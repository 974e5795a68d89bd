"""Attention over documents of different lengths, and over local windows, on CUDA: the flash attention of torch.

Legend: N flattened tokens, H query heads, K key and value heads, E head dim.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

_SHARES_KEYS = torch.__version__ >= "2.13"  # has `enable_gqa`


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def why_not_varlen(device: torch.device, dtype: torch.dtype, head_size: int, dropout: float) -> str | None:
    """The reason why `varlen_attention` cannot be used, or None."""
    if device.type != "cuda" or torch.version.hip is not None:
        return "it needs an NVIDIA GPU"
    if not torch.backends.cuda.is_flash_attention_available():
        return "this build of torch has no flash attention"
    if _capability(device) < (8, 0):
        return f"it needs compute capability 8.0 or higher, and this GPU has {'.'.join(map(str, _capability(device)))}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it supports bf16 and fp16, not {dtype}"
    # The backward pass of the largest heads needs more shared memory than consumer GPUs have.
    largest = 256 if _capability(device) in ((8, 0), (9, 0), (10, 0)) else 192
    if head_size % 8 or head_size > largest:
        return f"it supports a head_dim that is a multiple of 8 up to {largest}, not {head_size}"
    return "it does not support dropout" if dropout else None


def varlen_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, cu_seqlens: Tensor, longest: int, *, causal: bool, window: int | None
) -> Tensor:
    """Attention inside each document of the flattened tokens, (N, H, E).

    Query head h reads key head h // (H / K).

    Args:
        cu_seqlens: int32 (documents + 1,) on the device; repeated ends are empty documents.
        longest: an upper bound of the lengths of the documents. A smaller bound only saves empty thread blocks.
    """
    from torch.nn.attention.varlen import varlen_attn  # the import takes seconds and is needed only on GPUs

    options: dict[str, Any] = {}
    group_size = q_NHE.shape[1] // k_NKE.shape[1]
    if group_size > 1 and _SHARES_KEYS:
        options["enable_gqa"] = True
    elif group_size > 1:
        k_NKE, v_NKE = (x.repeat_interleave(group_size, dim=1) for x in (k_NKE, v_NKE))
    left = -1 if window is None else window
    options["window_size"] = (left, 0 if causal else left)
    out_NHE = varlen_attn(q_NHE, k_NKE, v_NKE, cu_seqlens, cu_seqlens, longest, longest, **options)
    assert isinstance(out_NHE, Tensor)  # with `return_aux` it would be a tuple
    return out_NHE
