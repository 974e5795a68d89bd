"""Attention over packed documents: who may see whom (the layout), and the product itself.

Legend: B batch, T time (of queries), S time (of keys), H query heads, K key and value heads, E head size, N flattened
tokens (B * T).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class AttentionLayout:
    """Who may attend to whom, prepared once per forward of a model and shared by all its layers.

    Attributes:
        is_causal: True asks the back-end for its own causal pattern, which needs no mask.
        mask: bool (B or 1, 1, T, S), True where a query may see a key, for all heads; None where none is needed.
    """

    is_causal: bool
    mask: Tensor | None = None


def segments_of(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """Number of the document that each of the flattened tokens belongs to, (N,).

    Repeated ends (a `cu_seqlens` padded to a fixed size) are empty documents and change nothing.
    """
    tokens_N = torch.arange(num_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(tokens_N, cu_seqlens[1:], right=True)


def default_positions(
    batch: int,
    length: int,
    cu_seqlens: Tensor | None,
    device: torch.device,
    past: int = 0,
    mask_BS: Tensor | None = None,
) -> Tensor:
    """Positions that start at 0 in each document, (B, T), or (1, T) where all rows are alike.

    Args:
        past: number of positions already taken by cached tokens (then `cu_seqlens` is None).
        mask_BS: bool, False for padding; positions count the others.
    """
    if mask_BS is not None:
        return (mask_BS.cumsum(-1) - 1).clamp(min=0)[:, -length:]
    if cu_seqlens is None:
        return torch.arange(past, past + length, device=device)[None]
    tokens_N = torch.arange(batch * length, device=device)
    starts_N = cu_seqlens.long()[segments_of(cu_seqlens, batch * length)]
    return (tokens_N - starts_N).view(batch, length)


def prepare_layout(
    batch: int,
    length: int,
    causal: bool,
    cu_seqlens: Tensor | None,
    device: torch.device,
    *,
    past: int = 0,
    window: int | None = None,
    mask_BS: Tensor | None = None,
) -> AttentionLayout:
    """The layout of B rows of T new tokens.

    This is the one place that turns document boundaries into what a back-end wants.

    Args:
        batch, length: B and T.
        causal: whether a token sees only itself and what is before it.
        cu_seqlens: int32 (documents + 1,), the boundaries of the documents in the flattened B * T tokens: 0, the end
            of the first document, ..., B * T. Every row starts a document. None: each row is one document.
        device: where the mask is made.
        past: number of cached tokens before the new ones, which all of them may see. Not with `cu_seqlens`.
        window: how many neighbours a token sees besides itself, on each side that it sees at all; None for all.
        mask_BS: bool, False for padding, which no token sees; S are past and new tokens. Not with `cu_seqlens`.

    Raises:
        ValueError: `cu_seqlens` of another shape or type, or together with `past` or `mask_BS`.
    """
    if window is not None or mask_BS is not None:
        queries_T = torch.arange(past, past + length, device=device)
        keys_S = torch.arange(past + length, device=device)
        back_TS = queries_T[:, None] - keys_S
        seen_TS = back_TS >= 0 if causal else torch.ones_like(back_TS, dtype=torch.bool)
        if window is not None:
            seen_TS = seen_TS & (back_TS.abs() <= window)
        seen_BTS = seen_TS[None]
        if mask_BS is not None:
            seen_BTS = seen_BTS & mask_BS[:, None, :]
            seen_BTS = seen_BTS | (back_TS == 0)  # padding sees itself: a row of no key at all would be NaN
        if cu_seqlens is not None:
            segments_BT = segments_of(cu_seqlens, batch * length).view(batch, length)
            seen_BTS = seen_BTS & (segments_BT[:, :, None] == segments_BT[:, None, :])
        return AttentionLayout(is_causal=False, mask=seen_BTS[:, None])
    if cu_seqlens is None:
        if not causal or length == 1:
            return AttentionLayout(is_causal=False)
        if past == 0:
            return AttentionLayout(is_causal=True)
        mask_TS = torch.ones(length, past + length, dtype=torch.bool, device=device).tril(diagonal=past)
        return AttentionLayout(is_causal=False, mask=mask_TS[None, None])

    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens must be one row of int32, and is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; "
            "pass the documents' ends, counted over all rows, with a 0 before them"
        )
    if past:
        raise ValueError(f"cu_seqlens cannot be combined with {past} cached tokens; generate one document per row")
    if len(cu_seqlens) == batch + 1:  # told by the shape alone, so no device waits for the answer
        return AttentionLayout(is_causal=causal)
    segments_BT = segments_of(cu_seqlens, batch * length).view(batch, length)
    mask_BTS = segments_BT[:, :, None] == segments_BT[:, None, :]
    if causal:
        mask_BTS = mask_BTS.tril()
    return AttentionLayout(is_causal=False, mask=mask_BTS[:, None])


def attention(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, layout: AttentionLayout, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(E)) v under the layout (arXiv 1706.03762), (B, T, H, E).

    Query head h reads key head h // (H / K) (arXiv 2305.13245).

    Args:
        dropout: probability of zeroing an attention weight; 0 outside of training.
    """
    out_BHTE = nn.functional.scaled_dot_product_attention(
        q_BTHE.transpose(1, 2),
        k_BSKE.transpose(1, 2),
        v_BSKE.transpose(1, 2),
        attn_mask=layout.mask,
        dropout_p=dropout,
        is_causal=layout.is_causal,
        enable_gqa=q_BTHE.shape[2] != k_BSKE.shape[2],
    )
    return out_BHTE.transpose(1, 2)
