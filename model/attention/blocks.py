"""Attention on a CPU in blocks of queries, if each query sees an interval of the keys.

Causal order, windows, packed documents and padding are all intervals. A block of queries is multiplied only with the
keys that at least one of its queries sees, so most hidden pairs are not computed, and only the edges of a block are
masked. The scores of a block fit the caches. They are not saved: the backward pass computes them again. The products
run at the speed of the machine's matrix products, faster than torch's own bf16 kernel for CPUs
(benchmarks/attention.py).

Legend: B batch, T queries, S keys, H query heads, K key and value heads, G = H / K, E head dim, R = 1 or B rows of
intervals, J = B * K, Q = T * G queries of all heads that share a key head.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

QUERIES = 128  # in a block; 64 and 256 are slower at 512 tokens
SCORES = 1 << 19  # in a block, of as many heads as fit: 1 MiB in bf16, half of the caches of two cores


@torch.library.custom_op("ingot::blockwise_attention", mutates_args=())
def blockwise_attention(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, first_RT: Tensor, last_RT: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(E)) v (arXiv 1706.03762), (B, T, H, E), where query t sees the keys first[t]..last[t].

    Scores are rounded to the dtype of q; the softmax is computed in fp32.

    Args:
        first_RT, last_RT: int64, the first and the last key that each query sees, at least one key. One row for all
            sequences, or one row for each.
    """
    inputs = _Inputs.of(q_BTHE, k_BSKE, v_BSKE)
    out_JQE = torch.empty_like(inputs.q_JQE)
    for block in _blocks(first_RT, last_RT, inputs):
        p_JQS = block.probabilities(inputs)
        torch.bmm(p_JQS, block.keys(inputs.v_JSE), out=block.queries(out_JQE))
    return inputs.heads_last(out_JQE)


@torch.library.custom_op("ingot::blockwise_attention_backward", mutates_args=())
def blockwise_attention_backward(
    grad_BTHE: Tensor, q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, first_RT: Tensor, last_RT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v. Those of k and v are sums over the blocks, computed in fp32."""
    inputs = _Inputs.of(q_BTHE, k_BSKE, v_BSKE)
    grad_JQE = inputs.heads_first(grad_BTHE)
    dq_JQE = torch.empty_like(inputs.q_JQE)
    dk_JSE, dv_JSE = (torch.zeros_like(inputs.k_JSE, dtype=torch.float32) for _ in range(2))
    for block in _blocks(first_RT, last_RT, inputs):
        p_JQS, g_JQE, k_JSE = block.probabilities(inputs), block.queries(grad_JQE), block.keys(inputs.k_JSE)
        block.keys(dv_JSE).add_(torch.bmm(p_JQS.transpose(1, 2), g_JQE))
        dp_JQS = torch.bmm(g_JQE, block.keys(inputs.v_JSE).transpose(1, 2), out=block.scores)
        ds_JQS = torch.ops.aten._softmax_backward_data(dp_JQS, p_JQS, -1, p_JQS.dtype)
        torch.bmm(ds_JQS, k_JSE, out=block.queries(dq_JQE))
        block.keys(dk_JSE).add_(torch.bmm(ds_JQS.transpose(1, 2), block.queries(inputs.q_JQE)))
    dq_BTHE = inputs.heads_last(dq_JQE.mul_(inputs.scale))
    dk_BSKE, dv_BSKE = (
        x.unflatten(0, k_BSKE.shape[:1] + k_BSKE.shape[2:3]).transpose(1, 2).to(q_BTHE.dtype).contiguous()
        for x in (dk_JSE, dv_JSE)
    )
    return dq_BTHE, dk_BSKE, dv_BSKE


@blockwise_attention.register_fake
def _(q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, first_RT: Tensor, last_RT: Tensor) -> Tensor:
    return torch.empty_like(q_BTHE, memory_format=torch.contiguous_format)


@blockwise_attention_backward.register_fake
def _(
    grad_BTHE: Tensor, q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor, first_RT: Tensor, last_RT: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    dq, dk, dv = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_BTHE, k_BSKE, v_BSKE))
    return dq, dk, dv


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_BTHE: Tensor) -> tuple[Tensor | None, ...]:
    return *blockwise_attention_backward(grad_BTHE, *ctx.saved_tensors), None, None


blockwise_attention.register_autograd(_backward, setup_context=_save)


@dataclass(frozen=True)
class _Inputs:
    """Queries (scaled), keys and values, contiguous for each head."""

    q_JQE: Tensor
    k_JSE: Tensor
    v_JSE: Tensor
    batch: int
    group: int  # G
    scale: float

    @classmethod
    def of(cls, q_BTHE: Tensor, k_BSKE: Tensor, v_BSKE: Tensor) -> _Inputs:
        batch, _, heads, size = q_BTHE.shape
        k_JSE, v_JSE = (x.transpose(1, 2).flatten(0, 1).contiguous() for x in (k_BSKE, v_BSKE))
        group, scale = heads // k_BSKE.shape[2], 1 / math.sqrt(size)
        return cls(_heads_first(q_BTHE * scale, group), k_JSE, v_JSE, batch, group, scale)

    def heads_first(self, x_BTHE: Tensor) -> Tensor:
        return _heads_first(x_BTHE, self.group)

    def heads_last(self, x_JQE: Tensor) -> Tensor:
        x_BKTGE = x_JQE.unflatten(1, (-1, self.group)).unflatten(0, (self.batch, -1))
        return x_BKTGE.permute(0, 2, 1, 3, 4).flatten(2, 3).contiguous()


def _heads_first(x_BTHE: Tensor, group: int) -> Tensor:
    """(J, T * G, E): token by token, the queries of all heads that share a key head."""
    x_BKTGE = x_BTHE.unflatten(2, (-1, group)).permute(0, 2, 1, 3, 4)
    return x_BKTGE.flatten(2, 3).flatten(0, 1).contiguous()


@dataclass(frozen=True)
class _Block:
    """The queries of some heads and a range of tokens, and the keys that they see."""

    heads: slice
    rows: slice
    columns: slice
    edges: list[tuple[slice, Tensor]]  # columns of the scores, and which of them are hidden (queries, columns)
    scores: Tensor  # buffer of the scores
    probability: Tensor  # buffer of the probabilities

    def queries(self, x_JQE: Tensor) -> Tensor:
        return x_JQE[self.heads, self.rows]

    def keys(self, x_JSE: Tensor) -> Tensor:
        return x_JSE[self.heads, self.columns]

    def probabilities(self, inputs: _Inputs) -> Tensor:
        torch.bmm(self.queries(inputs.q_JQE), self.keys(inputs.k_JSE).transpose(1, 2), out=self.scores)
        for columns, hidden in self.edges:
            self.scores[:, :, columns].masked_fill_(hidden, -math.inf)
        return torch.softmax(self.scores, -1, out=self.probability)


def _blocks(first_RT: Tensor, last_RT: Tensor, inputs: _Inputs) -> Iterator[_Block]:
    """All blocks. Use each one before the next is taken: the next one overwrites its buffers."""
    num_rows, length = first_RT.shape
    num_heads = inputs.k_JSE.shape[0] // num_rows  # that share a row of intervals
    table = _ranges(first_RT, last_RT)
    largest = max(row[3] for row in table) * QUERIES * inputs.group
    buffers = inputs.q_JQE.new_empty(2, max(SCORES, min(num_heads, torch.get_num_threads()) * largest))
    for row, begin, start, num_keys, all_from, all_to in table:
        end = min(length, begin + QUERIES)
        edges = [(start, start + num_keys)]
        if all_from < all_to:  # keys that all of these queries see
            edges = [(start, all_from), (all_to, start + num_keys)]
        hidden = [
            (
                slice(a - start, b - start),
                _hidden(first_RT[row, begin:end], last_RT[row, begin:end], a, b, inputs.group),
            )
            for a, b in edges
            if a < b
        ]
        num_queries = (end - begin) * inputs.group
        at_once = min(num_heads, max(torch.get_num_threads(), SCORES // (num_queries * num_keys)))
        for head in range(row * num_heads, (row + 1) * num_heads, at_once):
            heads = slice(head, min(head + at_once, (row + 1) * num_heads))
            shape = (heads.stop - heads.start, num_queries, num_keys)
            yield _Block(
                heads,
                slice(begin * inputs.group, end * inputs.group),
                slice(start, start + num_keys),
                hidden,
                *(x[: math.prod(shape)].view(shape) for x in buffers),
            )


def _ranges(first_RT: Tensor, last_RT: Tensor) -> list[list[int]]:
    """For each block of queries: row, first query, first key, number of keys, and start and end of the keys that all of
    its queries see."""
    num_rows, length = first_RT.shape
    begins = torch.arange(0, length, QUERIES)
    padding = -length % QUERIES
    first_RCQ, last_RCQ = (
        torch.cat((x, x[:, -1:].expand(-1, padding)), dim=1).view(num_rows, -1, QUERIES) for x in (first_RT, last_RT)
    )
    start_RC, stop_RC = first_RCQ.amin(-1), last_RCQ.amax(-1) + 1
    columns = (
        torch.arange(num_rows)[:, None].expand_as(start_RC),
        begins.expand_as(start_RC),
        start_RC,
        stop_RC - start_RC,
        first_RCQ.amax(-1),
        last_RCQ.amin(-1) + 1,
    )
    return torch.stack(columns, dim=-1).flatten(0, 1).tolist()


def _hidden(first_Q: Tensor, last_Q: Tensor, start: int, stop: int, group: int) -> Tensor:
    """bool (queries * G, stop - start): True for the keys that a query does not see."""
    keys = torch.arange(start, stop)
    hidden = (keys < first_Q[:, None]) | (keys > last_Q[:, None])
    return hidden if group == 1 else hidden.repeat_interleave(group, dim=0)
