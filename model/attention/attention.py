"""Attention: the layout (which query sees which key), the back-end that computes it, and the product itself.

| back-end  | runs on | supports                                                       | file         |
|-----------|---------|----------------------------------------------------------------|--------------|
| sdpa      | all     | everything; a dense mask, unless causal or without a mask      | here         |
| blocks    | CPU     | all but cached tokens and padding with holes; for bf16         | blocks.py    |
| documents | CPU     | packed documents and padded rows, also with dropout            | documents.py |
| windows   | CPU     | local windows, with documents and padding                      | windows.py   |
| varlen    | CUDA    | packed documents, local windows; bf16 and fp16                 | varlen.py    |
| flex      | CUDA    | the same for other dtypes and head dims                        | flex.py      |

Only sdpa and documents support dropout, and only sdpa supports cached tokens. To add a back-end, add its name to
`Backend`, its limits to `why_not` and its priority to `preferred` (all in backends.py), and its call to `attention`.

Legend: B batch, T time (of queries), S time (of keys), H query heads, K key and value heads, E head dim, N flattened
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

OPERATORS = (
    "ingot::blockwise_attention",
    "ingot::document_attention",
    "ingot::window_attention",
    "torch_attn::_varlen_attn",  # of torch.nn.attention.varlen, in torch 2.11 to 2.13
    "flex_attention",  # in a compiled model
    "inductor_compiled_code",  # flex_attention elsewhere: see flex.py
)
"""The back-ends that are one operator. Slow to compute, small to save: selective checkpointing saves their results.
(Those behind `scaled_dot_product_attention` are torch's.)"""

# Whether torch's flash kernel for the CPU supports fewer key heads than query heads, also in the backward pass.
_CPU_SHARES_KEYS = torch.__version__ >= "2.13"


@dataclass(frozen=True)
class AttentionLayout:
    """Which query sees which key. It is prepared once per forward of a model and shared by all layers.

    Attributes:
        backend: The back-end that computes it.
        is_causal: True asks the back-end for its own causal mask.
        window: For windows and varlen: neighbours that a token sees on each side that it may see. None for all.
        mask: For sdpa: bool (B or 1, 1, T or 1, S), True where a query sees a key, for all heads; None if no mask is
            needed. For windows: the result of `window_mask`.
        documents: For varlen: int32 (M + 1,) boundaries. For documents: int (M, 2) starts and ends.
        intervals: For blocks: int64 (2, 1 or B, T), the first and the last key that each query sees.
        block_mask: For flex.
        first_key: Keys before this one are not in the window of any query.
    """

    backend: Backend
    is_causal: bool
    window: int | None = None
    mask: Tensor | None = None
    documents: Tensor | None = None
    intervals: Tensor | None = None
    block_mask: BlockMask | None = None
    first_key: int = 0

    def varying(self) -> list[tuple[Tensor, int]]:
        """The tensors whose size follows from the documents of a batch, each with this dim: one compiled graph must do
        for all sizes."""
        return [] if self.documents is None else [(self.documents, 0)]


def default_positions(
    batch: int,
    length: int,
    cu_seqlens: Tensor | None,
    device: torch.device,
    past: int = 0,
    mask_BS: Tensor | None = None,
) -> Tensor:
    """Positions that start at 0 in each document, (B, T), or (1, T) if all rows are equal.

    Args:
        past: number of cached tokens, whose positions come first (then `cu_seqlens` is None).
        mask_BS: bool, False for padding, which has no position.
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
    """The layout of B rows of T new tokens, with the fastest back-end for it.

    Only this function converts document boundaries to the inputs of the back-ends. The host never waits for a GPU. On
    the CPU boundaries and padding are read, and masks that hide nothing are removed.

    Args:
        batch, length: B and T.
        causal: whether a token sees only itself and the tokens before it.
        cu_seqlens: int32 (documents + 1,), the boundaries of the documents in the flattened B * T tokens: 0, the end
            of the first document, ..., B * T. Every row starts a document. None: each row is one document.
        device: device of the tensors.
        past: number of cached tokens before the new ones, which see all of them. Not together with `cu_seqlens`.
        window: number of neighbours that a token sees on each side that it may see, without itself. None for all.
        mask_BS: bool, False for padding, which no other token sees. S counts cached and new tokens. The output at
            padding has no meaning, but is finite. Not together with `cu_seqlens`.
        dtype, head_size, dropout: those of the later calls of `attention`; the choice of the back-end depends on them.
        backend: uses this back-end, for tests and comparisons.

    Raises:
        ValueError: `cu_seqlens` of another shape or dtype, or together with `past` or `mask_BS`; a `backend` that does
            not support the request.
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
        raise ValueError(f"the attention back-end {backend!r} cannot be used: {reason}; leave backend out")
    return _layout(backend, request)


def _check(cu_seqlens: Tensor, past: int, mask_BS: Tensor | None) -> None:
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int32:
        raise ValueError(
            f"cu_seqlens must be int32 of one dimension, and is {cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}; "
            "pass 0 and the ends of the documents, counted over all rows"
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
        is_token_N = None if request.padding_mask is None else request.padding_mask.flatten()
        assert window is not None  # `why_not` refuses windows without one
        return AttentionLayout(backend, causal, window, mask=window_mask(segments_N, causal, window, is_token_N))

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
        dropout: probability of zeroing an attention weight; 0 outside training.

    Raises:
        ValueError: dropout with a layout that was prepared without dropout.
    """
    if layout.backend == "sdpa":
        return _sdpa(q_BTHE, k_BSKE[:, layout.first_key :], v_BSKE[:, layout.first_key :], layout, dropout)
    if dropout and layout.backend != "documents":
        raise ValueError(
            f"the back-end {layout.backend!r} does not support dropout {dropout}; pass dropout to prepare_layout too"
        )
    if layout.backend == "flex":
        assert layout.block_mask is not None
        return flex_attention(q_BTHE, k_BSKE, v_BSKE, layout.block_mask)
    if layout.backend == "blocks":
        assert layout.intervals is not None
        return blockwise_attention(q_BTHE, k_BSKE, v_BSKE, layout.intervals[0], layout.intervals[1])
    batch, length = q_BTHE.shape[:2]
    q_NHE, k_NKE, v_NKE = (x.flatten(0, 1) for x in (q_BTHE, k_BSKE, v_BSKE))
    if layout.backend == "varlen":
        assert layout.documents is not None
        out_NHE = varlen_attention(
            q_NHE, k_NKE, v_NKE, layout.documents, length, causal=layout.is_causal, window=layout.window
        )
        return out_NHE.unflatten(0, (batch, length))
    group_size = q_BTHE.shape[2] // k_BSKE.shape[2]
    if group_size > 1 and (dropout or not _CPU_SHARES_KEYS):
        k_NKE, v_NKE = (x.repeat_interleave(group_size, dim=1) for x in (k_NKE, v_NKE))
    if layout.backend == "windows":
        out_NHE, _ = window_attention(q_NHE, k_NKE, v_NKE, layout.mask, layout.window)
    elif dropout:
        assert layout.documents is not None
        out_NHE = document_attention_with_dropout(q_NHE, k_NKE, v_NKE, layout.documents, layout.is_causal, dropout)
    else:
        out_NHE, _ = document_attention(q_NHE, k_NKE, v_NKE, layout.documents, layout.is_causal)
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
