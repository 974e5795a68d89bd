"""Attention on the CPU, one document at a time: no mask, and no work for pairs of tokens of different documents.

torch's flash kernel for the CPU is called on views of the flattened tokens: once for each long document, once for each
run of consecutive documents of equal length (for example images), and once for each group of other short documents,
which are padded to the same length. For autograd and torch.compile all calls are one operator.

bf16 documents shorter than `_NATIVE_LENGTH` are computed in fp32: the kernel prepares its bf16 matrix products again
for each shape, and in small blocks they are slower than in fp32 (up to 5 times in the backward pass). Measured on a CPU
with AVX512-BF16.

Legend: N flattened tokens, M spans, H query heads, K key and value heads, E head dim, G documents of a run or group,
L their length (in a group with padding), P padded tokens of all groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_SHORT = 64  # shorter documents: one call each costs more than one call for several with padding
_STEP = 16  # short documents are padded to a multiple of this
_EQUAL = 8  # from this number of consecutive short documents of equal length on, one call without padding
_NATIVE_LENGTH = 512


@dataclass(frozen=True)
class _KernelCalls:
    """The kernel calls that cover the spans.

    Attributes:
        runs: (start, G, L) of consecutive documents that one call reads as a view: a long one, or several of equal
            length.
        groups: (G, L) of each group of short documents.
        token_of_slot: (P,) the token in each slot of the padded groups. Padding repeats the last token of its own
            document, so that a NaN in one document cannot reach another.
        filled_slots: slots that hold a token; `padding_slots`: the other ones.
        tokens: the token in each filled slot.
        covers_all: whether all N tokens are in a span.
    """

    runs: tuple[tuple[int, int, int], ...]
    groups: tuple[tuple[int, int], ...]
    token_of_slot: Tensor
    filled_slots: Tensor
    padding_slots: Tensor
    tokens: Tensor
    covers_all: bool


@lru_cache(maxsize=8)  # all layers of a model have the same spans, forward and backward
def _kernel_calls(spans: tuple[tuple[int, int], ...], num_tokens: int) -> _KernelCalls:
    documents = [(start, end) for start, end in spans if start < end]
    runs: list[tuple[int, int, int]] = []
    grouped: dict[int, list[tuple[int, int]]] = {}
    for start, count, length in _runs(documents):
        if length >= _SHORT or count >= _EQUAL:
            runs.append((start, count, length))
        else:
            members = [(start + i * length, start + (i + 1) * length) for i in range(count)]
            grouped.setdefault(-(-length // _STEP) * _STEP, []).extend(members)
    single = {length for length, members in grouped.items() if len(members) == 1}
    groups = {length: members for length, members in sorted(grouped.items()) if length not in single}
    runs += [(start, 1, end - start) for length in sorted(single) for start, end in grouped[length]]
    token_of_slot, is_filled = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.bool)]
    for length, members in groups.items():
        start_G1, end_G1 = torch.tensor(members)[:, :, None].unbind(1)
        token_GL = start_G1 + torch.arange(length)
        token_of_slot.append(torch.minimum(token_GL, end_G1 - 1).flatten())
        is_filled.append((token_GL < end_G1).flatten())
    token_P, is_filled_P = torch.cat(token_of_slot), torch.cat(is_filled)
    filled_slots = is_filled_P.nonzero()[:, 0]
    return _KernelCalls(
        runs=tuple(runs),
        groups=tuple((len(members), length) for length, members in groups.items()),
        token_of_slot=token_P,
        filled_slots=filled_slots,
        padding_slots=(~is_filled_P).nonzero()[:, 0],
        tokens=token_P[filled_slots],
        covers_all=sum(end - start for start, end in documents) == num_tokens,
    )


def _runs(spans: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(start, G, L) of consecutive documents of equal length."""
    runs: list[tuple[int, int, int]] = []
    for start, end in spans:
        if runs:
            first, count, length = runs[-1]
            if start == first + count * length and end - start == length:
                runs[-1] = (first, count + 1, length)
                continue
        runs.append((start, 1, end - start))
    return runs


def _calls_of(spans_M2: Tensor, num_tokens: int) -> _KernelCalls:
    return _kernel_calls(tuple(map(tuple, spans_M2.tolist())), num_tokens)


def _run_of(x_NHE: Tensor, run: tuple[int, int, int]) -> Tensor:
    """The tokens of a run as (G, heads, L, E), or (G, heads, L) for a tensor without E; a view."""
    start, count, length = run
    return x_NHE[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)


def _for_kernel(x_GHLE: Tensor, dtype: torch.dtype) -> Tensor:
    x_GHLE = x_GHLE if x_GHLE.stride(-1) == 1 else x_GHLE.contiguous()  # the kernel requires this stride
    return x_GHLE.to(dtype)


def _new_output(calls: _KernelCalls, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A contiguous tensor of the same shape; zeros if not every token will be written."""
    new = like.new_empty if calls.covers_all else like.new_zeros
    return new(like.shape, dtype=dtype or like.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or the dtype itself if it is wider."""
    return torch.promote_types(dtype, torch.float32)


def _dtype_of(run: tuple[int, int, int], dtype: torch.dtype) -> torch.dtype:
    return dtype if run[2] >= _NATIVE_LENGTH else _wide(dtype)


def _groups(
    calls: _KernelCalls, tensors: tuple[Tensor, ...], causal: bool
) -> Iterator[tuple[slice, list[Tensor], Tensor | None]]:
    """For each group: its slots, its tensors as (G, heads, L, E), and the bias that hides padded keys."""
    wide = _wide(tensors[0].dtype)
    padded = [x.index_select(0, calls.token_of_slot).to(wide) for x in tensors]
    is_padding_P = torch.zeros(len(calls.token_of_slot), dtype=torch.bool).index_fill_(0, calls.padding_slots, True)
    first = 0
    for count, length in calls.groups:
        slots = slice(first, first + count * length)
        first = slots.stop
        bias = None  # causal: the padding is after all tokens, so no token sees it
        if not causal:
            bias = torch.zeros(count * length, dtype=wide).masked_fill_(is_padding_P[slots], float("-inf"))
            bias = bias.view(count, 1, 1, length)
        yield slots, [x[slots].unflatten(0, (count, length)).transpose(1, 2) for x in padded], bias


def document_attention_with_dropout(
    q_NHE: Tensor, k_NHE: Tensor, v_NHE: Tensor, spans_M2: Tensor, causal: bool, dropout: float
) -> Tensor:
    """As `document_attention`, with a probability of zeroing an attention weight. It uses plain operators, because the
    flash kernel for the CPU has no dropout. The number of key heads must be that of the query heads."""
    calls, parts, tokens = _calls_of(spans_M2, len(q_NHE)), [], []
    tensors = (q_NHE, k_NHE, v_NHE)
    for run in calls.runs:
        q_GHLE, k_GHLE, v_GHLE = (_run_of(x, run) for x in tensors)
        out_GHLE = nn.functional.scaled_dot_product_attention(
            q_GHLE, k_GHLE, v_GHLE, dropout_p=dropout, is_causal=causal
        )
        parts.append(out_GHLE.transpose(1, 2).flatten(0, 1))
        tokens.append(run[0] + torch.arange(run[1] * run[2]))
    if calls.groups:
        padded = []
        for (_, length), (_, qkv, bias) in zip(calls.groups, _groups(calls, tensors, causal), strict=True):
            q_GHLE, k_GHLE, v_GHLE = qkv
            if causal:
                bias = q_GHLE.new_full((length, length), float("-inf")).triu(1)
            out_GHLE = nn.functional.scaled_dot_product_attention(
                q_GHLE, k_GHLE, v_GHLE, attn_mask=bias, dropout_p=dropout
            )
            padded.append(out_GHLE.transpose(1, 2).flatten(0, 1))
        parts.append(torch.cat(padded).index_select(0, calls.filled_slots).to(q_NHE.dtype))
        tokens.append(calls.tokens)
    return torch.zeros_like(q_NHE).index_copy(0, torch.cat(tokens), torch.cat(parts))


@torch.library.custom_op("ingot::document_attention", mutates_args=(), device_types="cpu")
def document_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, spans_M2: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention inside each span of the flattened tokens; 0 for tokens outside all spans.

    Args:
        spans_M2: int (M, 2), start and end of each document. They must not overlap; they may be empty.

    Returns:
        The result (N, H, E), and for the backward pass the log-sum-exp of each query, (N, H) in fp32 or wider.
    """
    calls = _calls_of(spans_M2, len(q_NHE))
    out_NHE = _new_output(calls, q_NHE)
    lse_NH = _new_output(calls, q_NHE[..., 0], _wide(q_NHE.dtype))
    for run in calls.runs:
        qkv = [_for_kernel(_run_of(x, run), _dtype_of(run, x.dtype)) for x in (q_NHE, k_NKE, v_NKE)]
        out_GHLE, lse_GHL = _flash(*qkv, 0.0, causal)
        _run_of(out_NHE, run).copy_(out_GHLE)
        _run_of(lse_NH, run).copy_(lse_GHL)
    if calls.groups:
        out_PHE = q_NHE.new_empty(len(calls.token_of_slot), *q_NHE.shape[1:], dtype=_wide(q_NHE.dtype))
        lse_PH = out_PHE.new_empty(out_PHE.shape[:2])
        for slots, qkv, bias in _groups(calls, (q_NHE, k_NKE, v_NKE), causal):
            out_GHLE, lse_GHL = _flash(*qkv, 0.0, causal, attn_mask=bias)
            out_PHE[slots] = out_GHLE.transpose(1, 2).flatten(0, 1)
            lse_PH[slots] = lse_GHL.transpose(1, 2).flatten(0, 1)
        out_NHE.index_copy_(0, calls.tokens, out_PHE.index_select(0, calls.filled_slots).to(out_NHE.dtype))
        lse_NH.index_copy_(0, calls.tokens, lse_PH.index_select(0, calls.filled_slots))
    return out_NHE, lse_NH


@torch.library.custom_op("ingot::document_attention_backward", mutates_args=(), device_types="cpu")
def document_attention_backward(
    grad_NHE: Tensor,
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    out_NHE: Tensor,
    lse_NH: Tensor,
    spans_M2: Tensor,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    calls = _calls_of(spans_M2, len(q_NHE))
    dq_NHE, dk_NKE, dv_NKE = (_new_output(calls, x) for x in (q_NHE, k_NKE, v_NKE))
    grads = (dq_NHE, dk_NKE, dv_NKE)
    tensors = (grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE)
    for run in calls.runs:
        arguments = [_for_kernel(_run_of(x, run), _dtype_of(run, x.dtype)) for x in tensors]
        for grad, x_GHLE in zip(grads, _flash_backward(*arguments, _run_of(lse_NH, run), 0.0, causal), strict=True):
            _run_of(grad, run).copy_(x_GHLE)
    if calls.groups:
        lse_PH = lse_NH.index_select(0, calls.token_of_slot)
        padded = [x.new_empty(len(calls.token_of_slot), *x.shape[1:], dtype=_wide(q_NHE.dtype)) for x in grads]
        is_padding_P1 = torch.zeros(len(calls.token_of_slot), 1, 1, dtype=torch.bool).index_fill_(
            0, calls.padding_slots, True
        )
        for slots, arguments, bias in _groups(calls, tensors, causal):
            count, _, length, _ = arguments[0].shape
            hidden_G1L1 = is_padding_P1[slots].view(count, 1, length, 1)
            arguments[0].masked_fill_(hidden_G1L1, 0.0)  # padded queries have no gradient
            lse_GHL = lse_PH[slots].unflatten(0, (count, length)).transpose(1, 2)
            found = _flash_backward(*arguments, lse_GHL, 0.0, causal, attn_mask=bias)
            for grad_PHE, x_GHLE in zip(padded, found, strict=True):
                grad_PHE[slots] = x_GHLE.transpose(1, 2).flatten(0, 1)
        for grad, grad_PHE in zip(grads, padded, strict=True):
            grad.index_copy_(0, calls.tokens, grad_PHE.index_select(0, calls.filled_slots).to(grad.dtype))
    return grads


@document_attention.register_fake
def _(q_NHE, k_NKE, v_NKE, spans_M2, causal):
    return q_NHE.new_empty(q_NHE.shape), q_NHE.new_empty(q_NHE.shape[:2], dtype=_wide(q_NHE.dtype))


@document_attention_backward.register_fake
def _(grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE, lse_NH, spans_M2, causal):
    return tuple(x.new_empty(x.shape) for x in (q_NHE, k_NKE, v_NKE))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q_NHE, k_NKE, v_NKE, spans_M2, ctx.causal = inputs
    ctx.save_for_backward(q_NHE, k_NKE, v_NKE, *output, spans_M2)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_NHE: Tensor, _grad_lse: None) -> tuple[Tensor | None, ...]:
    q_NHE, k_NKE, v_NKE, out_NHE, lse_NH, spans_M2 = ctx.saved_tensors
    arguments = (grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE, lse_NH, spans_M2, ctx.causal)
    return *document_attention_backward(*arguments), None, None


document_attention.register_autograd(_backward, setup_context=_save)
