"""The choice of the attention back-end, from the request, the device, the dtype and the sizes.

Legend: B batch, N flattened tokens (B * T), M documents, S time (of keys).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from ingot.model.attention.flex import why_not_flex
from ingot.model.attention.masks import runs_of
from ingot.model.attention.varlen import why_not_varlen
from ingot.model.attention.windows import block_length

Backend = Literal["sdpa", "blocks", "documents", "windows", "varlen", "flex"]

LONG = 256  # tokens of a document from which on blocks are faster than documents in bf16 (benchmarks/attention.py)


@dataclass(frozen=True)
class Request:
    """The arguments of `prepare_layout`."""

    batch: int
    length: int
    causal: bool
    device: torch.device
    past: int
    window: int | None
    cu_seqlens: Tensor | None
    padding_mask: Tensor | None
    dtype: torch.dtype
    head_size: int
    dropout: float
    runs: Tensor | None = None  # (B, 2) start and end, if the tokens of each row that are not padding are contiguous

    @property
    def row_bounds(self) -> Tensor:
        """`cu_seqlens` of rows that are one document each."""
        num_tokens = self.batch * self.length
        return torch.arange(0, num_tokens + 1, self.length, dtype=torch.int32, device=self.device)

    @property
    def bounds(self) -> Tensor:
        """`cu_seqlens`, or those of the rows if there are none."""
        return self.row_bounds if self.cu_seqlens is None else self.cu_seqlens


def simplified(request: Request) -> Request:
    """Removes masks that hide nothing: boundaries at the ends of rows, windows over all tokens, masks without
    padding."""
    cu_seqlens, window, mask_BS, runs = request.cu_seqlens, request.window, request.padding_mask, None
    longest = request.past + request.length
    if request.device.type == "cpu":
        if cu_seqlens is not None:
            lengths_M = cu_seqlens.diff()
            longest = int(lengths_M.max())
            if int(lengths_M.count_nonzero()) == request.batch:
                cu_seqlens = None
        if mask_BS is not None and bool(mask_BS.all()):
            mask_BS = None
        if mask_BS is not None and request.past == 0:
            runs = runs_of(mask_BS)
    elif (
        cu_seqlens is not None and len(cu_seqlens) == request.batch + 1
    ):  # known from the shape, without waiting for the device
        cu_seqlens = None
    if window is not None and window >= longest - 1:
        window = None
    return replace(request, cu_seqlens=cu_seqlens, window=window, padding_mask=mask_BS, runs=runs)


def why_not(backend: Backend, request: Request) -> str | None:
    """The reason why a back-end does not support the request, or None."""
    if backend not in get_args(Backend):
        return f"known back-ends are {', '.join(get_args(Backend))}"
    if backend == "sdpa":
        return None
    if request.past:
        return "it does not support cached tokens"
    if backend in ("varlen", "flex") and request.padding_mask is not None:
        return "it does not support a padding mask"
    if backend == "varlen":
        return why_not_varlen(request.device, request.dtype, request.head_size, request.dropout)
    if backend == "flex":
        return why_not_flex(request.device, request.head_size, request.dropout)
    if request.device.type != "cpu":
        return "it runs only on a CPU"
    if request.dropout and backend != "documents":
        return "it does not support dropout"
    if backend == "windows" and request.window is None:
        return "there is no window, or the window covers every document"
    if backend == "documents" and request.window is not None:
        return "it does not support windows"
    if backend in ("blocks", "documents") and request.padding_mask is not None and request.runs is None:
        return "the padding mask has holes"
    return None


def preferred(request: Request) -> Backend:
    """The fastest back-end that supports the request; benchmarks/attention.py compares them."""
    plain = request.cu_seqlens is None and request.window is None and request.padding_mask is None
    on_cpu = request.device.type == "cpu"
    if on_cpu and request.dtype == torch.bfloat16 and request.window is None and request.length > 1:
        num_documents = request.batch if request.cu_seqlens is None else int(request.cu_seqlens.diff().count_nonzero())
        if request.batch * request.length >= LONG * num_documents and why_not("blocks", request) is None:
            return "blocks"
    if plain:
        return "sdpa"
    if on_cpu:
        candidates: tuple[Backend, ...] = ("documents",)
        if request.window is not None:
            reach = request.window * (1 if request.causal else 2) + block_length(request.window)
            candidates = ("windows",) if request.length > reach else ()
    else:
        candidates = ("varlen", "flex")
    return next((backend for backend in candidates if why_not(backend, request) is None), "sdpa")
