"""Attention over local windows on the CPU: blocks of queries, each with the keys around it.

The keys of neighbouring blocks overlap; torch's flash kernel for the CPU reads them from one strided view. The mask has
L entries for each query instead of T. It hides everything that must be hidden (window, documents, rows, padding), so
the tokens of all rows are processed as one sequence. Computed in fp32 at least, for the reason given in documents.py.

Legend: B batch, T time, N flattened tokens (B * T), n blocks, C queries of a block, L keys of a block, H query heads,
K key and value heads, E head dim.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ingot.model.attention.masks import seen_at

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def block_length(window: int) -> int:
    """C: 64 was fastest for windows of 64 and 128. Wider windows use a quarter of the window, so that fewer keys are
    copied."""
    return max(64, -(-window // 256) * 64)


def window_mask(
    segments_N: Tensor, causal: bool, window: int, is_token_N: Tensor | None = None, block: int | None = None
) -> Tensor:
    """The bias that `window_attention` adds to the scores, fp32 (n, 1, C, L): 0 where a query sees a key, else -inf.

    Args:
        segments_N: document number of each token; each row starts a document.
        is_token_N: False for padding, which sees only itself and is seen only by itself.
    """
    block = block_length(window) if block is None else block
    num_tokens, behind = len(segments_N), 0 if causal else window
    num_blocks = -(-num_tokens // block)
    keys_N = segments_N if is_token_N is None else torch.where(is_token_N, segments_N, -1)
    tail = num_blocks * block - num_tokens
    queries_nC = nn.functional.pad(segments_N, (0, tail), value=-2).view(num_blocks, block)
    keys_nL = nn.functional.pad(keys_N, (window, tail + behind), value=-1)
    keys_nL = keys_nL.unfold(0, window + block + behind, block)
    keys_L = torch.arange(window + block + behind, device=segments_N.device)
    back_CL = keys_L[window : window + block, None] - keys_L
    seen_nCL = (queries_nC[:, :, None] == keys_nL[:, None, :]) & seen_at(back_CL, causal, window)
    seen_nCL |= back_CL == 0  # padding sees itself: the kernel does not define a softmax over an empty set
    return segments_N.new_zeros(seen_nCL.shape, dtype=torch.float32).masked_fill_(~seen_nCL, float("-inf"))[:, None]


def _wide(dtype: torch.dtype) -> torch.dtype:
    """fp32, or the dtype itself if it is wider."""
    return torch.promote_types(dtype, torch.float32)


def _query_blocks(x_NHE: Tensor, num_blocks: int, block: int) -> Tensor:
    """(n, H, C, E) in fp32 or wider, the last block padded with zeros; a view if nothing has to be copied."""
    num_tokens = len(x_NHE)
    if num_tokens == num_blocks * block and x_NHE.stride(-1) == 1:
        padded = x_NHE.to(_wide(x_NHE.dtype))
    else:
        padded = x_NHE.new_zeros(num_blocks * block, *x_NHE.shape[1:], dtype=_wide(x_NHE.dtype))
        padded[:num_tokens] = x_NHE
    return padded.unflatten(0, (num_blocks, block)).transpose(1, 2)


def _key_blocks(x_NKE: Tensor, num_blocks: int, block: int, keys: int, before: int) -> Tensor:
    """(n, K, L, E) in fp32 or wider, an overlapping view of the keys with zeros before and after them."""
    padded = x_NKE.new_zeros((num_blocks - 1) * block + keys, *x_NKE.shape[1:], dtype=_wide(x_NKE.dtype))
    padded[before : before + len(x_NKE)] = x_NKE
    return padded.unfold(0, keys, block).permute(0, 1, 3, 2)


def _sum_of_key_blocks(x_nKLE: Tensor, num_tokens: int, block: int, before: int) -> Tensor:
    """The reverse of `_key_blocks` for gradients: the sum over all blocks for each token, (N, K, E)."""
    num_blocks, num_heads, keys, size = x_nKLE.shape
    pieces = -(-keys // block)
    total = x_nKLE.new_zeros((num_blocks + pieces - 1) * block, num_heads, size)
    for first in range(0, keys, block):
        count = min(block, keys - first)
        target = total[first : first + num_blocks * block].unflatten(0, (num_blocks, block))
        target[:, :count] += x_nKLE[:, :, first : first + count].transpose(1, 2)
    return total[before : before + num_tokens]


def _blocks(q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, bias_n1CL: Tensor, before: int) -> list[Tensor]:
    num_blocks, _, block, keys = bias_n1CL.shape
    sizes = (num_blocks, block, keys, before)
    return [_query_blocks(q_NHE, num_blocks, block), _key_blocks(k_NKE, *sizes), _key_blocks(v_NKE, *sizes)]


@torch.library.custom_op("ingot::window_attention", mutates_args=(), device_types="cpu")
def window_attention(
    q_NHE: Tensor, k_NKE: Tensor, v_NKE: Tensor, bias_n1CL: Tensor, before: int
) -> tuple[Tensor, Tensor]:
    """Attention of each block of C queries to L keys, which start `before` tokens before the block.

    Args:
        bias_n1CL: from `window_mask`.
        before: the window.

    Returns:
        The result (N, H, E), and for the backward pass the log-sum-exp, (n, C, H) in fp32 or wider.
    """
    out_nHCE, lse_nHC = _flash(
        *_blocks(q_NHE, k_NKE, v_NKE, bias_n1CL, before), attn_mask=bias_n1CL.to(_wide(q_NHE.dtype))
    )
    out_NHE = q_NHE.new_empty(q_NHE.shape)
    out_NHE.copy_(out_nHCE.transpose(1, 2).flatten(0, 1)[: len(q_NHE)])
    return out_NHE, lse_nHC.transpose(1, 2).contiguous()


@torch.library.custom_op("ingot::window_attention_backward", mutates_args=(), device_types="cpu")
def window_attention_backward(
    grad_NHE: Tensor,
    q_NHE: Tensor,
    k_NKE: Tensor,
    v_NKE: Tensor,
    out_NHE: Tensor,
    lse_nCH: Tensor,
    bias_n1CL: Tensor,
    before: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    num_blocks, _, block, _ = bias_n1CL.shape
    num_tokens = len(q_NHE)
    grad_nHCE, out_nHCE = (_query_blocks(x, num_blocks, block) for x in (grad_NHE, out_NHE))
    q_nHCE, k_nKLE, v_nKLE = _blocks(q_NHE, k_NKE, v_NKE, bias_n1CL, before)
    grad_q_nHCE, grad_k_nKLE, grad_v_nKLE = _flash_backward(
        grad_nHCE,
        q_nHCE,
        k_nKLE,
        v_nKLE,
        out_nHCE,
        lse_nCH.transpose(1, 2),
        0.0,
        False,
        attn_mask=bias_n1CL.to(q_nHCE.dtype),
    )
    dq_NHE, dk_NKE, dv_NKE = (x.new_empty(x.shape) for x in (q_NHE, k_NKE, v_NKE))
    dq_NHE.copy_(grad_q_nHCE.transpose(1, 2).flatten(0, 1)[:num_tokens])
    dk_NKE.copy_(_sum_of_key_blocks(grad_k_nKLE, num_tokens, block, before))
    dv_NKE.copy_(_sum_of_key_blocks(grad_v_nKLE, num_tokens, block, before))
    return dq_NHE, dk_NKE, dv_NKE


@window_attention.register_fake
def _(q_NHE, k_NKE, v_NKE, bias_n1CL, before):
    num_blocks, _, block, _ = bias_n1CL.shape
    lse_nCH = q_NHE.new_empty(num_blocks, block, q_NHE.shape[1], dtype=_wide(q_NHE.dtype))
    return q_NHE.new_empty(q_NHE.shape), lse_nCH


@window_attention_backward.register_fake
def _(grad_NHE, q_NHE, k_NKE, v_NKE, out_NHE, lse_nCH, bias_n1CL, before):
    return tuple(x.new_empty(x.shape) for x in (q_NHE, k_NKE, v_NKE))


def _save(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    q_NHE, k_NKE, v_NKE, bias_n1CL, ctx.before = inputs
    ctx.save_for_backward(q_NHE, k_NKE, v_NKE, *output, bias_n1CL)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad_NHE: Tensor, _grad_lse: None) -> tuple[Tensor | None, ...]:
    return *window_attention_backward(grad_NHE, *ctx.saved_tensors, ctx.before), None, None


window_attention.register_autograd(_backward, setup_context=_save)
