"""Attention with dropout on the CPU, one document at a time: documents of about one length are padded and go together.

torch's kernels without a mask between documents have no dropout there, and a dense mask over all packed tokens would
draw, and compute, the square of their number.

Legend: N flattened tokens, M spans, H heads, E head size, G documents of a group, L their padded length.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

_STEP = 16  # lengths are padded to a multiple of this, long ones to a multiple of about an eighth of the length


@lru_cache(maxsize=8)  # the layers of a model, forward and backward, ask with the same spans
def _groups(spans: tuple[tuple[int, int], ...], causal: bool) -> tuple[list[tuple], Tensor, Tensor]:
    """For each group the token at each place (G, L) and the mask (G, 1, L or 1, L); then for each token of a span, in
    the order of the groups, its place among all places, and the token."""
    grouped: dict[int, list[tuple[int, int]]] = {}
    for start, end in spans:
        if end > start:
            step = max(_STEP, (end - start) // 8 // _STEP * _STEP)
            grouped.setdefault(-(-(end - start) // step) * step, []).append((start, end))
    groups, real, tokens, first = [], [], [], 0
    for length, members in sorted(grouped.items()):
        start_G1, end_G1 = torch.tensor(members)[:, :, None].unbind(1)
        place_GL = start_G1 + torch.arange(length)
        shown_GL = place_GL < end_G1
        mask = shown_GL[:, None, None, :]
        if causal:
            mask = mask & torch.ones(length, length, dtype=torch.bool).tril()
        groups.append((torch.minimum(place_GL, end_G1 - 1), mask))
        real.append(first + shown_GL.flatten().nonzero()[:, 0])
        tokens.append(place_GL[shown_GL])
        first += place_GL.numel()
    return groups, torch.cat(real), torch.cat(tokens)


def document_attention_with_dropout(
    q_NHE: Tensor, k_NHE: Tensor, v_NHE: Tensor, spans_M2: Tensor, causal: bool, dropout: float
) -> Tensor:
    """Attention inside each span of the flattened tokens, (N, H, E); 0 for tokens of none.

    Args:
        spans_M2: int (M, 2), start and end of each document; they do not overlap, empty ones are allowed.
        dropout: probability of zeroing an attention weight.
    """
    groups, real, tokens = _groups(tuple(map(tuple, spans_M2.tolist())), causal)
    parts = []
    for place_GL, mask in groups:
        picked = [x.index_select(0, place_GL.flatten()) for x in (q_NHE, k_NHE, v_NHE)]
        qkv_GHLE = [x.unflatten(0, place_GL.shape).transpose(1, 2) for x in picked]
        out_GHLE = nn.functional.scaled_dot_product_attention(*qkv_GHLE, attn_mask=mask, dropout_p=dropout)
        parts.append(out_GHLE.transpose(1, 2).flatten(0, 1))
    out_NHE = torch.zeros_like(q_NHE)
    return out_NHE.index_copy(0, tokens, torch.cat(parts).index_select(0, real))
