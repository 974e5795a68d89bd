"""Attention on the CPU, one document at a time: no mask, and no work between documents.

torch's flash kernel for the CPU runs on views of the flattened tokens, once for each long document and each run of
equally long ones that follow each other (images, say), and once for each group of other short ones, which are padded to
the same length. All of it is one operator to autograd and to torch.compile.

A bf16 document below `_NATIVE_LENGTH` is computed in fp32: the kernel's bf16 matrix products are set up anew for each
shape, and on small blocks (up to 5 times, backward) slower than those in fp32. Measured on a CPU with AVX512-BF16.

Legend: N flattened tokens, M spans, H query heads, K key and value heads, E head size, G documents of a run or group,
L their length, padded in a group, P padded tokens of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_SHORT = 64  # up to here one call for each document costs more than gathering and padding several
_STEP = 16  # short documents are padded to a multiple of this
_EQUAL = 8  # so many short documents of one length, one behind the other, need no padding
_NATIVE_LENGTH = 512


@dataclass(frozen=True)
class _Plan:
    """Which calls cover the spans.

    Attributes:
        runs: (start, G, L) of documents that one call sees as they lie: a long one, or equally long ones.
        groups: (G, L) of each group of short documents.
        places: (P,) the token at each padded place, group after group; padding repeats its own document's last token,
            so that what is in one document (a NaN) cannot reach another.
        real: places that hold a token; `padding`: the other ones.
        tokens: the token at each real place.
        is_whole: every one of the N tokens is in a span.
    """

    runs: tuple[tuple[int, int, int], ...]
    groups: tuple[tuple[int, int], ...]
    places: Tensor
    real: Tensor
    padding: Tensor
    tokens: Tensor
    is_whole: bool


@lru_cache(maxsize=8)  # the layers of a model, forward and backward, ask with the same spans
def _plan(spans: tuple[tuple[int, int], ...], num_tokens: int) -> _Plan:
    filled = [(start, end) for start, end in spans if start < end]
    runs, grouped = [], {}
    for start, count, length in _runs(filled):
        if length >= _SHORT or count >= _EQUAL:
            runs.append((start, count, length))
        else:
            members = [(start + i * length, start + (i + 1) * length) for i in range(count)]
            grouped.setdefault(-(-length // _STEP) * _STEP, []).extend(members)
    few = {length for length, members in grouped.items() if len(members) == 1}
    groups = {length: members for length, members in sorted(grouped.items()) if length not in few}
    runs += [(start, 1, end - start) for length in sorted(few) for start, end in grouped[length]]
    places, is_real = [torch.empty(0, dtype=torch.long)], [torch.empty(0, dtype=torch.bool)]
    for length, members in groups.items():
        start_G1, end_G1 = torch.tensor(members)[:, :, None].unbind(1)
        place_GL = start_G1 + torch.arange(length)
        places.append(torch.minimum(place_GL, end_G1 - 1).flatten())
        is_real.append((place_GL < end_G1).flatten())
    padded_P, is_real_P = torch.cat(places), torch.cat(is_real)
    real = is_real_P.nonzero()[:, 0]
    return _Plan(
        runs=tuple(runs),
        groups=tuple((len(members), length) for length, members in groups.items()),
        places=padded_P,
        real=real,
        padding=(~is_real_P).nonzero()[:, 0],
        tokens=padded_P[real],
        is_whole=sum(end - start for start, end in filled) == num_tokens,
    )


def _runs(spans: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(start, G, L) of documents of one length, each beginning where the one before it ends."""
    runs: list[tuple[int, int, int]] = []
    for start, end in spans:
        if runs:
            first, count, length = runs[-1]
            if start == first + count * length and end - start == length:
                runs[-1] = (first, count + 1, length)
                continue
        runs.append((start, 1, end - start))
    return runs


def _plan_of(spans_M2: Tensor, num_tokens: int) -> _Plan:
    return _plan(tuple(map(tuple, spans_M2.tolist())), num_tokens)


def _run_of(x_NHE: Tensor, run: tuple[int, int, int]) -> Tensor:
    """The run's part as (G, heads, L, E), or (G, heads, L) of what has no E; a view."""
    start, count, length = run
    return x_NHE[start : start + count * length].unflatten(0, (count, length)).transpose(1, 2)


def _for_kernel(x_GHLE: Tensor, dtype: torch.dtype) -> Tensor:
    x_GHLE = x_GHLE if x_GHLE.stride(-1) == 1 else x_GHLE.contiguous()  # the kernel takes this stride for granted
    return x_GHLE.to(dtype)


def _make(plan: _Plan, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Room of the same shape, contiguous; zeros where not every token will be written."""
    make = like.new_empty if plan.is_whole else like.new_zeros
    return make(like.shape, dtype=dtype or like.dtype)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _type_of(run: tuple[int, int, int], dtype: torch.dtype) -> torch.dtype:
    return dtype if run[2] >= _NATIVE_LENGTH else _wide(dtype)


def _groups(plan: _Plan, tensors: tuple[Tensor, ...], causal: bool):
    """For each group its slice of the padded places, its tensors as (G, heads, L, E), and what hides padded keys."""
    wide = _wide(tensors[0].dtype)
    padded = [x.index_select(0, plan.places).to(wide) for x in tensors]
    is_padding_P = torch.zeros(len(plan.places), dtype=torch.bool).index_fill_(0, plan.padding, True)
    first = 0
    for count, length in plan.groups:
        places = slice(first, first + count * length)
        first = places.stop
        bias = None  # causal: no token sees the padding, which is behind it
        if not causal:
            bias = torch.zeros(count * length, dtype=wide).masked_fill_(is_padding_P[places], float("-inf"))
            bias = bias.view(count, 1, 1, length)
        yield places, [x[places].unflatten(0, (count, length)).transpose(1, 2) for x in padded], bias


def document_attention_with_dropout(
    q_NHE: Tensor, k_NHE: Tensor, v_NHE: Tensor, spans_M2: Tensor, causal: bool, dropout: float
) -> Tensor:
    """As `document_attention`, with a probability of zeroing an attention weight; in plain operators, since the flash
    kernel for the CPU has no dropout. As many key heads as query heads."""
    plan, parts, tokens = _plan_of(spans_M2, len(q_NHE)), [], []
    tensors = (q_NHE, k_NHE, v_NHE)
    for run in plan.runs:
        qkv = [_run_of(x, run) for x in tensors]
        out_GHLE = nn.functional.scaled_dot_product_attention(*qkv, dropout_p=dropout, is_causal=causal)
        parts.append(out_GHLE.transpose(1, 2).flatten(0, 1))
        tokens.append(run[0] + torch.arange(run[1] * run[2]))
    if plan.groups:
        padded = []
        for (_, length), (_, qkv, bias) in zip(plan.groups, _groups(plan, tensors, causal), strict=True):
            if causal:
                bias = qkv[0].new_full((length, length), float("-inf")).triu(1)
            out_GHLE = nn.functional.scaled_dot_product_attention(*qkv, attn_mask=bias, dropout_p=dropout)
            padded.append(out_GHLE.transpose(1, 2).flatten(0, 1))
        parts.append(torch.cat(padded).index_select(0, plan.real).to(q_NHE.dtype))
        tokens.append(plan.tokens)
    return torch.zeros_like(q_NHE).index_copy(0, torch.cat(tokens), torch.cat(parts))


@torch.library.custom_op("ingot::document_attention", mutates_args=(), device_types="cpu")
def document_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, spans_M2: Tensor, causal: bool
) -> tuple[Tensor, Tensor]:
    """Attention inside each span of the flattened tokens; 0 for tokens of none.

    Args:
        spans_M2: int (M, 2), start and end of each document; they do not overlap, empty ones are allowed.

    Returns:
        The result (N, H, E), and for the backward pass each query's log of the sum of exponentials, (N, H) in fp32
        or wider.
    """
    plan = _plan_of(spans_M2, len(q_NHE))
    out_NHE = _make(plan, q_NHE)
    lse_NH = _make(plan, q_NHE[..., 0], _wide(q_NHE.dtype))
    for run in plan.runs:
        qkv = [_for_kernel(_run_of(x, run), _type_of(run, x.dtype)) for x in (q_NHE, k_NKE, v_NKE)]
        out_GHLE, lse_GHL = _flash(*qkv, 0.0, causal)
        _run_of(out_NHE, run).copy_(out_GHLE)
        _run_of(lse_NH, run).copy_(lse_GHL)
    if plan.groups:
        out_PHE = q_NHE.new_empty(len(plan.places), *q_NHE.shape[1:], dtype=_wide(q_NHE.dtype))
        lse_PH = out_PHE.new_empty(out_PHE.shape[:2])
        for places, qkv, bias in _groups(plan, (q_NHE, k_NKE, v_NKE), causal):
            out_GHLE, lse_GHL = _flash(*qkv, 0.0, causal, attn_mask=bias)
            out_PHE[places] = out_GHLE.transpose(1, 2).flatten(0, 1)
            lse_PH[places] = lse_GHL.transpose(1, 2).flatten(0, 1)
        out_NHE.index_copy_(0, plan.tokens, out_PHE.index_select(0, plan.real).to(out_NHE.dtype))
        lse_NH.index_copy_(0, plan.tokens, lse_PH.index_select(0, plan.real))
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
    plan = _plan_of(spans_M2, len(q_NHE))
    grads = tuple(_make(plan, x) for x in (q_NHE, k_NKE, v_NKE))
    tensors = (grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE)
    for run in plan.runs:
        arguments = [_for_kernel(_run_of(x, run), _type_of(run, x.dtype)) for x in tensors]
        for grad_NHE, x_GHLE in zip(grads, _flash_backward(*arguments, _run_of(lse_NH, run), 0.0, causal), strict=True):
            _run_of(grad_NHE, run).copy_(x_GHLE)
    if plan.groups:
        lse_PH = lse_NH.index_select(0, plan.places)
        padded = [x.new_empty(len(plan.places), *x.shape[1:], dtype=_wide(q_NHE.dtype)) for x in grads]
        is_padding_P1 = torch.zeros(len(plan.places), 1, 1, dtype=torch.bool).index_fill_(0, plan.padding, True)
        for places, arguments, bias in _groups(plan, tensors, causal):
            count, _, length, _ = arguments[0].shape
            hidden_G1L1 = is_padding_P1[places].view(count, 1, length, 1)
            arguments[0].masked_fill_(hidden_G1L1, 0.0)  # nothing comes back from padded queries
            lse_GHL = lse_PH[places].unflatten(0, (count, length)).transpose(1, 2)
            found = _flash_backward(*arguments, lse_GHL, 0.0, causal, attn_mask=bias)
            for grad_PHE, x_GHLE in zip(padded, found, strict=True):
                grad_PHE[places] = x_GHLE.transpose(1, 2).flatten(0, 1)
        for grad, grad_PHE in zip(grads, padded, strict=True):
            grad.index_copy_(0, plan.tokens, grad_PHE.index_select(0, plan.real).to(grad.dtype))
    return grads


@document_attention.register_fake
def _(q_NHE, k_NKE, v_NKE, spans_M2, causal):
    return q_NHE.new_empty(q_NHE.shape), q_NHE.new_empty(q_NHE.shape[:2], dtype=_wide(q_NHE.dtype))


@document_attention_backward.register_fake
def _(grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE, lse_NH, spans_M2, causal):
    return tuple(x.new_empty(x.shape) for x in (q_NHE, k_NKE, v_NKE))


def _save(ctx, inputs, output) -> None:
    q_NHE, k_NKE, v_NKE, spans_M2, ctx.causal = inputs
    ctx.save_for_backward(q_NHE, k_NKE, v_NKE, *output, spans_M2)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx, grad_NHE, _grad_lse):
    q_NHE, k_NKE, v_NKE, out_NHE, lse_NH, spans_M2 = ctx.saved_tensors
    arguments = (grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE, lse_NH, spans_M2, ctx.causal)
    return *document_attention_backward(*arguments), None, None


document_attention.register_autograd(_backward, setup_context=_save)
