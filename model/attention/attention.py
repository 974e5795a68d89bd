"""Attention: who may see whom (the layout), which back-end works it out, and the product itself.

| back-end  | runs on | takes                                                          | file                   |
|-----------|---------|----------------------------------------------------------------|------------------------|
| sdpa      | all     | all: no mask where causal or nothing is to hide, else a dense  | here                   |
| blocks    | CPU     | all but cached tokens and holes in padding; for bf16           | attention_blocks.py    |
| documents | CPU     | packed documents and padded rows, with dropout too             | attention_documents.py |
| windows   | CPU     | local windows, with documents and padding                      | attention_windows.py   |
| varlen    | CUDA    | packed documents, local windows; bf16 and fp16                 | attention_varlen.py    |
| flex      | CUDA    | the same in other types and head sizes                         | attention_flex.py      |

Only sdpa and documents have dropout, and only sdpa takes cached tokens. A further back-end is a name in `Backend`, its
limits in `why_not`, its place in `preferred` (both in attention_choice.py), and its call in `attention`.

Legend: B batch, T time (of queries), S time (of keys), H query heads, K key and value heads, E head size, N flattened
tokens (B * T), M documents.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from ingot.model.attention.backends import Backend, Request, preferred, simplified, why_not
from ingot.model.attention.blocks import blockwise_attention
from ingot.model.attention.documents import document_attention, document_attention_with_dropout
from ingot.model.attention.flex import flex_attention, flex_block_mask
from ingot.model.attention.masks import dense_mask, seen_intervals, segments_of
from ingot.model.attention.varlen import varlen_attention
from ingot.model.attention.windows import window_attention, window_mask

# Whether torch's flash kernel for the CPU takes fewer key heads than query heads, backward too.
_CPU_SHARES_KEYS = torch.__version__ >= (2, 13)


@dataclass(frozen=True)
class AttentionLayout:
    """Who may attend to whom, prepared once per forward of a model and shared by all its layers.

    Attributes:
        backend: What works it out.
        is_causal: True asks the back-end for its own causal pattern.
        window: Neighbours that a token sees on each side that it sees at all, for windows and varlen; None for all.
        mask: Of sdpa: bool (B or 1, 1, T or 1, S), True where a query may see a key, for all heads; None where none is
            needed. Of windows: `window_mask`'s.
        documents: Of varlen: int32 (M + 1,) boundaries. Of documents: int (M, 2) starts and ends.
        intervals: Of blocks: int64 (2, 1 or B, T), the first and the last key that each query sees.
        block_mask: Of flex.
        first_key: Keys before this one are in no query's window.
    """

    backend: Backend
    is_causal: bool
    window: int | None = None
    mask: Tensor | None = None
    documents: Tensor | None = None
    intervals: Tensor | None = None
    block_mask: BlockMask | None = None
    first_key: int = 0


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
    dtype: torch.dtype = torch.float32,
    head_size: int = 64,
    dropout: float = 0.0,
    backend: Backend | None = None,
) -> AttentionLayout:
    """The layout of B rows of T new tokens, with the back-end that is quickest for it.

    This is the one place that turns document boundaries into what a back-end wants. A GPU is never waited for; on the
    CPU boundaries and padding are read, and what hides nothing is dropped.

    Args:
        batch, length: B and T.
        causal: whether a token sees only itself and what is before it.
        cu_seqlens: int32 (documents + 1,), the boundaries of the documents in the flattened B * T tokens: 0, the end
            of the first document, ..., B * T. Every row starts a document. None: each row is one document.
        device: where the tensors are.
        past: number of cached tokens before the new ones, which all of them may see. Not with `cu_seqlens`.
        window: how many neighbours a token sees besides itself, on each side that it sees at all; None for all.
        mask_BS: bool, False for padding, which no other token sees; S are past and new tokens. Not with `cu_seqlens`.
            What comes out at padding means nothing, and is finite.
        dtype, head_size, dropout: of the calls of `attention` to come; the choice of the back-end depends on them.
        backend: takes this one, for tests and comparisons.

    Raises:
        ValueError: `cu_seqlens` of another shape or type, or together with `past` or `mask_BS`; a `backend` that
            cannot do it.
    """
    if cu_seqlens is not None:
        _check(cu_seqlens, past, mask_BS)
    request = simplified(
        Request(
            batch=batch,
            length=length,
            causal=causal,
            device=device,
            past=past,
            window=window,
            cu_seqlens=cu_seqlens,
            padding_mask=mask_BS,
            dtype=dtype,
            head_size=head_size,
            dropout=dropout,
        )
    )
    if backend is None:
        backend = preferred(request)
    elif (reason := why_not(backend, request)) is not None:
        raise ValueError(f"attention's back-end {backend!r} cannot be used: {reason}; leave backend out")
    return _layout(backend, request)


def _check(cu_seqlens: Tensor, past: int, mask_BS: Tensor | None) -> None:
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens must be one row of int32, and is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; "
            "pass the documents' ends, counted over all rows, with a 0 before them"
        )
    if past:
        raise ValueError(f"cu_seqlens cannot be combined with {past} cached tokens; generate one document per row")
    if mask_BS is not None:
        raise ValueError("cu_seqlens cannot be combined with a padding mask; make padding a document of its own")


def _layout(backend: Backend, request: Request) -> AttentionLayout:
    batch, length, causal, window = request.batch, request.length, request.causal, request.window
    if backend == "varlen":
        return AttentionLayout(backend, causal, window, documents=request.bounds)
    if backend == "documents":
        spans_M2 = request.runs
        if spans_M2 is None:
            spans_M2 = torch.stack((request.bounds[:-1], request.bounds[1:]), dim=-1)
        return AttentionLayout(backend, causal, documents=spans_M2)
    if backend == "blocks":
        intervals = seen_intervals(
            batch, length, causal, window, request.device, cu_seqlens=request.cu_seqlens, runs_B2=request.runs
        )
        return AttentionLayout(backend, causal, intervals=intervals)
    if backend in ("windows", "flex"):
        segments_N = segments_of(request.bounds, batch * length)
        if backend == "flex":
            block_mask = flex_block_mask(segments_N.view(batch, length), causal, window)
            return AttentionLayout(backend, causal, window, block_mask=block_mask)
        shown_N = None if request.padding_mask is None else request.padding_mask.flatten()
        return AttentionLayout(backend, causal, window, mask=window_mask(segments_N, causal, window, shown_N))

    past, mask_BS, first_key = request.past, request.padding_mask, 0
    if window is not None and past > window:
        first_key = past - window
        past = window
        mask_BS = None if mask_BS is None else mask_BS[:, first_key:]
    if causal and past == 0 and length > 1 and window is None and mask_BS is None and request.cu_seqlens is None:
        return AttentionLayout(backend, is_causal=True)
    segments_BT = None
    if request.cu_seqlens is not None:
        segments_BT = segments_of(request.cu_seqlens, batch * length).view(batch, length)
    mask = dense_mask(length, past, causal, window, request.device, segments_BT=segments_BT, mask_BS=mask_BS)
    return AttentionLayout(backend, is_causal=False, mask=mask, first_key=first_key)


def attention(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, layout: AttentionLayout, dropout: float = 0.0) -> Tensor:
    """softmax(q k^T / sqrt(E)) v under the layout (arXiv 1706.03762), (B, T, H, E).

    Query head h reads key head h // (H / K) (arXiv 2305.13245).

    Args:
        dropout: probability of zeroing an attention weight; 0 outside of training.

    Raises:
        ValueError: dropout, and a layout that was prepared without.
    """
    if layout.backend == "sdpa":
        return _sdpa(q_BTHE, k_BSKE[:, layout.first_key :], v_BSKE[:, layout.first_key :], layout, dropout)
    if dropout and layout.backend != "documents":
        raise ValueError(
            f"dropout {dropout} was asked of the back-end {layout.backend!r}, which has none; tell prepare_layout of it"
        )
    if layout.backend == "flex":
        return flex_attention(q_BTHE, k_BSKE, v_BSKE, layout.block_mask)
    if layout.backend == "blocks":
        return blockwise_attention(q_BTHE, k_BSKE, v_BSKE, *layout.intervals)
    batch, length = q_BTHE.shape[:2]
    qkv = [x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE)]
    if layout.backend == "varlen":
        out_NHE = varlen_attention(*qkv, layout.documents, length, layout.is_causal, layout.window)
        return out_NHE.unflatten(0, (batch, length))
    share = q_BTHE.shape[2] // k_BSKE.shape[2]
    if share > 1 and (dropout or not _CPU_SHARES_KEYS):
        qkv[1:] = [x.repeat_interleave(share, dim=1) for x in qkv[1:]]
    if layout.backend == "windows":
        out_NHE, _ = window_attention(*qkv, layout.mask, layout.window)
    elif dropout:
        out_NHE = document_attention_with_dropout(*qkv, layout.documents, layout.is_causal, dropout)
    else:
        out_NHE, _ = document_attention(*qkv, layout.documents, layout.is_causal)
    return out_NHE.unflatten(0, (batch, length))


def _sdpa(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, layout: AttentionLayout, dropout: float) -> Tensor:
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
