"""Boolean attention masks: documents, causal order, local windows and padding.

Legend: B batch, T time (of queries), S time (of keys), N flattened tokens (B * T), M documents.
"""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor


def segments_of(cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """The document number of each of the flattened tokens, (N,).

    Repeated ends (a `cu_seqlens` that is padded to a fixed size) are empty documents, which change nothing.
    """
    tokens_N = torch.arange(num_tokens, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    return torch.bucketize(tokens_N, cu_seqlens[1:], right=True)


def seen_at(back: Tensor, causal: bool, window: int | None) -> Tensor:
    """Whether a query sees a key that is `back` tokens before it (negative: after it)."""
    seen = back >= 0 if causal else torch.ones_like(back, dtype=torch.bool)
    return seen if window is None else seen & (back.abs() <= window)


def dense_mask(
    length: int,
    past: int,
    causal: bool,
    window: int | None,
    device: torch.device,
    *,
    segments_BT: Tensor | None = None,
    mask_BS: Tensor | None = None,
) -> Tensor | None:
    """bool (B or 1, 1, T or 1, S), True where a query sees a key. None if every query sees every key.

    Args:
        past: number of keys before the first query; S = past + T.
        segments_BT: documents; then past is 0.
        mask_BS: False for keys that only their own query sees; so no softmax is over an empty set.
    """
    if mask_BS is not None and past == 0 and not causal and window is None and segments_BT is None:
        # The mask does not depend on the query: one row for all queries. If all keys are padding, all are seen.
        return (mask_BS | ~mask_BS.any(-1, keepdim=True))[:, None, None]
    keys_S = torch.arange(past + length, device=device)
    back_TS = keys_S[past:, None] - keys_S
    parts = []
    if causal and length == 1 and (window is None or window >= past):
        pass  # one new token sees all keys
    elif causal or window is not None:
        parts.append(seen_at(back_TS, causal, window)[None])
    if segments_BT is not None:
        parts.append(segments_BT[:, :, None] == segments_BT[:, None, :])
    if mask_BS is not None:
        parts.append(mask_BS[:, None, :] | (back_TS == 0))
    return reduce(torch.bitwise_and, parts)[:, None] if parts else None


def runs_of(mask_BS: Tensor) -> Tensor | None:
    """(start, end) of the tokens of each row that are not padding, counted in the flattened tokens, (B, 2). None if the
    tokens of a row are not contiguous.

    It reads the mask, so the host waits for the device.
    """
    length = mask_BS.shape[1]
    numbers_BS = mask_BS.int()
    count_B = numbers_BS.sum(-1)
    first_B = numbers_BS.argmax(-1)
    end_B = length - numbers_BS.flip(-1).argmax(-1)
    if bool(((end_B - first_B != count_B) & (count_B > 0)).any()):
        return None
    starts_B = torch.arange(len(mask_BS), device=mask_BS.device) * length + first_B
    return torch.stack((starts_B, starts_B + count_B), dim=-1)


def seen_intervals(
    batch: int,
    length: int,
    causal: bool,
    window: int | None,
    device: torch.device,
    cu_seqlens: Tensor | None = None,
    runs_B2: Tensor | None = None,
) -> Tensor:
    """The first and the last key that each query sees, int64 (2, 1 or B, T), counted from the start of its row.

    These are the keys of its document, or the keys of its row that are not padding (`runs_of`): up to the query itself
    if causal, and inside its window. Padding sees only itself.
    """
    keys_1T = torch.arange(length, device=device)[None]
    row_begins_B1 = torch.arange(batch, device=device)[:, None] * length
    first_RT, last_RT = torch.zeros_like(keys_1T), torch.full_like(keys_1T, length - 1)
    if cu_seqlens is not None:
        bounds, segments_BT = cu_seqlens.long(), segments_of(cu_seqlens, batch * length).view(batch, length)
        first_RT, last_RT = bounds[segments_BT] - row_begins_B1, bounds[segments_BT + 1] - 1 - row_begins_B1
    elif runs_B2 is not None:
        start_B1, end_B1 = (runs_B2.long() - row_begins_B1).split(1, dim=1)
        is_token_BT = (start_B1 <= keys_1T) & (keys_1T < end_B1)
        first_RT, last_RT = torch.where(is_token_BT, start_B1, keys_1T), torch.where(is_token_BT, end_B1 - 1, keys_1T)
    if causal:
        last_RT = torch.minimum(last_RT, keys_1T)
    if window is not None:
        first_RT = torch.maximum(first_RT, keys_1T - window)
        last_RT = torch.minimum(last_RT, keys_1T + window)
    return torch.stack((first_RT, last_RT))
